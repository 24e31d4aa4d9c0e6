"""Edits that are run once by the deployed sampler, and again along the same trajectory with other weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ...model.checkpoint import Checkpoint
from ...model.networks import NETWORKS
from ...quant.recipe import choose_recipe
from ...quant.statistics import Statistics
from ...runtime.backends.protocol import Backend
from ...runtime.pipeline import Pipeline
from ...runtime.request import Request
from ..edit_sets.samples import Samples
from .samples import sample_requests
from .teacher_forcing import Recorder, TeacherForced
from .watched_networks import WatchedNetworks

MEASURED_SHARES = (1 / 6, 1 / 2, 5 / 6)
"""The steps at which errors are measured, as shares of the sampler's steps: early, middle, late."""


class EditableNetworks(WatchedNetworks):
    """Networks in PyTorch that stay in memory, and whose linears can compute with quantized weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        plain = choose_recipe(tuple(NETWORKS), checkpoint.parameters(), None)
        super().__init__(checkpoint, plain, Statistics())

    def release(self, *graphs: str) -> None:
        """Keeps the networks: each is needed thousands of times."""

    @contextlib.contextmanager
    def quantized(self, network: str, products: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Has linears of a network compute with `products`, weight → x [..., in] → [..., out] without bias, until the
        context ends."""
        module = self.networks.get(network) or self.networks.setdefault(network, self.build(network))
        hooks = [
            module.get_submodule(weight.removesuffix(".weight")).register_forward_hook(
                partial(replaced_output, product)
            )
            for weight, product in products.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def replaced_output(
    product: Callable[[Tensor], Tensor], module: nn.Module, inputs: Any, _output: Any
) -> Tensor:
    """A forward hook: what a quantized linear computes of the same inputs."""
    (x,) = inputs
    bias = dict(module.named_parameters()).get("bias")
    y = product(x)
    return (y if bias is None else y + bias.float()).to(x.dtype)


class RecordedEdits:
    """Edits of one shape with their recorded trajectory, to be run again with other weights."""

    def __init__(self, pipeline: Pipeline, networks: EditableNetworks, request: Request) -> None:
        self.pipeline, self.networks, self.request = pipeline, networks, request
        self.steps = tuple(
            sorted({min(int(share * request.steps), request.steps - 1) for share in MEASURED_SHARES})
        )
        self.texts = pipeline.encode_prompts(request.rows)
        self.references = pipeline.encode_references(request.rows)
        recorder = Recorder(networks)
        self.sample(recorder, self.texts)
        self.velocities = recorder.velocities

    def sample(self, backend: Backend, texts: dict[str, tuple[Any, Any]]) -> Any:
        self.pipeline.backend = backend
        try:
            return self.pipeline.sample(
                self.request.rows, self.request, texts, self.references, lambda *_: None
            )
        finally:
            self.pipeline.backend = self.networks

    def encode_texts(self, network: str) -> dict[str, tuple[Any, Any]]:
        """The recorded texts, or new ones if the changed network is a text encoder."""
        changed = network in ("text_encoder", "text_encoder_2")
        return self.pipeline.encode_prompts(self.request.rows) if changed else self.texts

    def energies(self, network: str) -> tuple[dict[int, float], dict[int, float]]:
        """Energies of the velocity's error and of the velocity, by step, with the current weights of `network`."""
        forced = TeacherForced(self.networks, self.velocities, self.steps)
        self.sample(forced, self.encode_texts(network))
        noise, signal = (
            {step: float(rows.sum()) for step, rows in each.items()} for each in (forced.noise, forced.signal)
        )
        return noise, signal

    def pictures(self, network: str) -> list[Image.Image]:
        """The edits' pictures, sampled freely with the current weights of `network`."""
        return self.pipeline.decode(self.sample(self.networks, self.encode_texts(network)))


def record_edits(
    pipeline: Pipeline, networks: EditableNetworks, samples: Samples, batch: int, count: int
) -> list[RecordedEdits]:
    """Runs and records the first `count` samples, at most `batch` at a time."""
    return [
        RecordedEdits(
            pipeline,
            networks,
            Request(tuple(request.rows[row] for row in rows), request.steps, request.guidance),
        )
        for request in sample_requests(samples, pipeline.bundle.sampler, batch, count)
        for rows in request.batches()
    ]
