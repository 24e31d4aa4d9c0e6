"""Edits that are run once by the deployed sampler and again, along the same trajectory, with other weights.

The networks are PyTorch's, as in calibration; at all but a few steps the sampler is answered from the record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...model.checkpoint import Checkpoint
from ...model.networks import NETWORKS
from ...quant.recipe import choose
from ...quant.statistics import Statistics
from ...runtime.backends.protocol import SamplerStep
from ...runtime.pipeline import Pipeline
from ...runtime.request import Request, build_request
from .calibrate import WatchedNetworks
from .samples import Samples

PARTS = (1 / 6, 1 / 2, 5 / 6)
"""Where in the sampler's steps errors are measured: early, middle, late."""


class ForcedNetworks(WatchedNetworks):
    """Networks in PyTorch whose first run of a batch is recorded; runs after it are answered from the record, save for
    the steps that errors are measured at."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        plain = choose(tuple(NETWORKS), checkpoint.parameters(), None)
        super().__init__(checkpoint, plain, Statistics())
        self.velocities: list[np.ndarray[Any, Any]] | None = None
        self.recording = True
        self.measured: tuple[int, ...] = ()
        self.noise: dict[int, float] = {}
        self.signal: dict[int, float] = {}

    def release(self, *graphs: str) -> None:
        """Networks stay: each is needed thousands of times."""

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        if step is None or self.velocities is None:
            return super().run(graph, inputs, step)
        if self.recording:
            outputs = super().run(graph, inputs, step)
            self.velocities.append(outputs["velocity"])
            return outputs
        expected = self.velocities[step.index]
        if step.index not in self.measured:
            return {"velocity": expected}
        velocity = super().run(graph, inputs, step)["velocity"]
        self.noise[step.index] = float(np.square(velocity - expected, dtype=np.float64).sum())
        self.signal[step.index] = float(np.square(expected, dtype=np.float64).sum())
        return {"velocity": expected}

    @contextlib.contextmanager
    def replaced(self, network: str, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """`weights` [in, out] in the place of a network's own."""
        module = self.networks.get(network) or self.networks.setdefault(network, self.build(network))
        parameters = {name: module.get_parameter(name) for name in weights}
        before = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = weights[name].t().to(parameter.dtype).contiguous()
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = before[name]


class Batch:
    """Some edits of one shape, their reference trajectory recorded, to be run again with other weights."""

    def __init__(self, pipeline: Pipeline, networks: ForcedNetworks, request: Request) -> None:
        self.pipeline, self.networks, self.request = pipeline, networks, request
        self.steps = tuple(sorted({min(int(part * request.steps), request.steps - 1) for part in PARTS}))
        self.texts = pipeline.encode_prompts(request.rows)
        self.references = pipeline.encode_references(request.rows)
        self.velocities: list[np.ndarray[Any, Any]] = []
        networks.velocities, networks.recording = self.velocities, True
        self.sample(self.texts)

    def sample(self, texts: dict[str, tuple[Any, Any]]) -> Any:
        return self.pipeline.sample(self.request.rows, self.request, texts, self.references, lambda *_: None)

    def energies(self, network: str) -> tuple[dict[int, float], dict[int, float]]:
        """Energy of the velocity's error and of the velocity, by step, with `network` as it is now."""
        networks = self.networks
        networks.velocities, networks.recording, networks.measured = self.velocities, False, self.steps
        texts = self.texts
        if network in ("text_encoder", "text_encoder_2"):
            texts = self.pipeline.encode_prompts(self.request.rows)
        self.sample(texts)
        return dict(networks.noise), dict(networks.signal)

    def pictures(self, network: str) -> list[Image.Image]:
        """The edits with `network` as it is now, run freely."""
        self.networks.velocities = None
        texts = self.texts
        if network in ("text_encoder", "text_encoder_2"):
            texts = self.pipeline.encode_prompts(self.request.rows)
        return self.pipeline.decode(self.sample(texts))


def batches(
    pipeline: Pipeline, networks: ForcedNetworks, samples: Samples, count: int, batch: int
) -> list[Batch]:
    """The first `count` samples, run once, at most `batch` at a time, those of one shape together."""
    result = []
    for start in range(0, min(count, len(samples.samples)), batch):
        chosen = samples.samples[start : min(start + batch, count)]
        request = build_request(
            pipeline.bundle.sampler,
            [sample.picture() for sample in chosen],
            [sample.prompt for sample in chosen],
            seed=start,
        )
        for rows in request.batches():
            part = Request(tuple(request.rows[row] for row in rows), request.steps, request.guidance)
            result.append(Batch(pipeline, networks, part))
    return result
