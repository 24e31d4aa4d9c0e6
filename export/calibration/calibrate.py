"""Calibration: the sampler runs the user's edits with the networks in PyTorch, and every quantized linear's inputs are
looked at, at all steps.

It is the deployed sampler itself (`runtime.Pipeline`), with networks that watch instead of graphs, so what is measured
is what an edit will do. Statistics are kept by digest: the same model and samples are never run twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import KontextError
from ...model.checkpoint import Checkpoint, NetworkWeights
from ...model.networks import build_network
from ...model.transformer import JointAttention
from ...quant.formats import FORMATS
from ...quant.recipe import Recipe
from ...quant.statistics import RANGES, InputStatistics, Statistics
from ...runtime.backends.protocol import SamplerStep
from ...runtime.bundle import Bundle
from ...runtime.cache import cache_folder
from ...runtime.pipeline import Pipeline
from ...runtime.request import build_request
from ..bundle.manifest import build_manifest
from ..bundle.tokenizer_files import TokenizerFile
from ..graph.fp8_attention import OPERANDS
from ..graph.interface import constants, linear_weights, network_interface
from ..progress import Progress
from .samples import Samples

VERSION = 2
"""Of the statistics; a change of what is collected makes old ones worthless."""

RESIDENT = 2 << 30
"""Bytes of weights up to which a network is held whole; the blocks of a larger one are read as they are needed."""

BATCH_PIXELS = 1 << 18
"""Pixels that are worked on at once: sixteen of the embedded model's pictures, one of FLUX's."""


class WatchedNetworks:
    """A backend of the pipeline over a checkpoint's networks, whose linears tell `statistics` what comes in."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, statistics: Statistics) -> None:
        self.checkpoint, self.recipe, self.statistics = checkpoint, recipe, statistics
        self.networks: dict[str, nn.Module] = {}
        self.parts: Tensor | int = 0
        """Range of the sampler's steps that the inputs now are of, or one for each row."""

    def hold(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(arrays)

    def release(self, *graphs: str) -> None:
        for graph in graphs:
            self.networks.pop(graph, None)

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        """As `runtime.pipeline.Backend`."""
        if graph not in self.networks:
            self.networks[graph] = self.build(graph)
        config = self.checkpoint.config
        interface = network_interface(graph, config)
        if step is not None:
            self.parts = RANGES * step.index // step.count
        elif graph == "modulation":  # rows are steps, then prompts
            rows = len(inputs["timestep"])
            self.parts = torch.arange(rows) * RANGES // rows
        else:
            self.parts = 0
        dtype = compute_dtype(self.checkpoint)
        arguments = []
        for name in interface.inputs:
            value = torch.from_numpy(np.ascontiguousarray(inputs[name]))
            arguments.append(
                value.to(dtype) if value.is_floating_point() and name not in interface.wide else value
            )
        with torch.inference_mode():
            outputs = self.networks[graph](*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.float().numpy() for name, output in zip(interface.outputs, outputs, strict=True)}

    def build(self, graph: str) -> nn.Module:
        """The network, its weights in memory or, where it is large, its blocks' still in their files."""
        weights, dtype = self.checkpoint.networks[graph], compute_dtype(self.checkpoint)
        with torch.device("meta"):
            network = build_network(graph, self.checkpoint.config).eval().requires_grad_(False)
        large = weights.parameters() * dtype.itemsize > RESIDENT
        blocks = streamed_blocks(network) if large and graph == "transformer" else {}
        resident = [name for name in weights.shapes if not any(name.startswith(f"{b}.") for b in blocks)]
        network.load_state_dict(
            {name: read(weights, name, dtype) for name in resident}, strict=False, assign=True
        )
        for name, table in constants(graph, self.checkpoint.config).items():
            setattr(network, name, table)
        for name, block in blocks.items():
            block.register_forward_pre_hook(partial(load_block, weights, name, dtype))
            block.register_forward_hook(drop_block)
        self.watch(graph, network)
        return network

    def watch(self, graph: str, network: nn.Module) -> None:
        """Puts a hook on every linear that the recipe quantizes."""
        linears = linear_weights(graph, self.checkpoint.config)
        shapes = self.checkpoint.networks[graph].shapes
        watched = self.statistics.inputs.setdefault(graph, {})
        for path, module in network.named_modules():
            if self.recipe.attention and isinstance(module, JointAttention):
                head_dim = self.checkpoint.config.transformer.head_dim
                names = [f"{path}.{operand}" for operand in OPERANDS]
                for name in names:
                    watched.setdefault(name, InputStatistics.empty(head_dim, moments=False))
                module.register_forward_pre_hook(
                    partial(self.see, f"{graph}: {path}", [watched[name] for name in names])
                )
            weight = f"{path}.weight"
            if weight not in linears:
                continue
            layer = self.recipe.layer_of(graph, weight, shapes[weight][::-1], True)
            if layer.format in FORMATS:
                watched.setdefault(weight, InputStatistics.empty(shapes[weight][1]))
                module.register_forward_pre_hook(partial(self.see, f"{graph}: {weight}", [watched[weight]]))

    def see(
        self, name: str, statistics: Sequence[InputStatistics], _module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        try:
            for each, values in zip(statistics, inputs, strict=True):
                if isinstance(self.parts, int):
                    each.add(values, self.parts)
                else:
                    for part in range(RANGES):
                        each.add(values[self.parts == part], part)
        except KontextError as error:
            raise KontextError(
                f"calibration stopped at {name}: {error}; the checkpoint is damaged, or a LoRA too strong"
            ) from None


def compute_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """fp32 for small models; bf16, as the reference pipelines, for those that would not fit."""
    return torch.float32 if checkpoint.parameters() < 1_000_000_000 else torch.bfloat16


def read(weights: NetworkWeights, name: str, dtype: torch.dtype) -> Tensor:
    return weights.read(name).to(dtype)


def streamed_blocks(network: nn.Module) -> dict[str, nn.Module]:
    return {
        f"{kind}.{index}": block
        for kind in ("double_blocks", "single_blocks")
        for index, block in enumerate(network.get_submodule(kind).children())
    }


def load_block(
    weights: NetworkWeights, name: str, dtype: torch.dtype, block: nn.Module, _inputs: Any
) -> None:
    state = {key: read(weights, f"{name}.{key}", dtype) for key in block.state_dict()}
    block.load_state_dict(state, assign=True)


def drop_block(block: nn.Module, _inputs: Any, _outputs: Any) -> None:
    block.to_empty(device="meta")


@contextlib.contextmanager
def outline(
    checkpoint: Checkpoint, recipe: Recipe, tokenizers: Mapping[str, TokenizerFile]
) -> Iterator[Bundle]:
    """The bundle that the export will make as far as a pipeline needs it: constants and tokenizers, no graphs."""
    with tempfile.TemporaryDirectory(prefix="kontext-calibration-") as name:
        folder = Path(name)
        (folder / "tokenizers").mkdir()
        for key, tokenizer in tokenizers.items():
            (folder / "tokenizers" / f"{key}.json").write_text(tokenizer.text, encoding="utf-8")
        manifest = json.loads(json.dumps(build_manifest(checkpoint, recipe, tokenizers, {})))
        yield Bundle.outline(folder, manifest)


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    tokenizers: Mapping[str, TokenizerFile],
    samples: Samples,
    progress: Progress,
) -> Statistics:
    """What goes into the linears that `recipe` quantizes, over all steps of the samples' edits.

    Statistics of the same model and samples are loaded from the cache; their `file` says so.

    Raises:
        KontextError: NaN or infinity turned up.
    """
    key = digest(checkpoint, recipe, samples)
    cached = cache_folder() / "calibration" / f"{key}.safetensors"
    if cached.exists():
        with contextlib.suppress(KontextError):  # a damaged cache is made anew
            return Statistics.load(cached)
    statistics = Statistics(about=about(checkpoint, samples))
    watched = WatchedNetworks(checkpoint, recipe, statistics)
    sampler = checkpoint.config.sampler
    side = checkpoint.config.autoencoder.sample_size
    batch = max(1, BATCH_PIXELS // side**2)
    with outline(checkpoint, recipe, tokenizers) as bundle:
        pipeline = Pipeline(bundle, watched, low_memory=checkpoint.parameters() >= 1_000_000_000)
        runs = -(-len(samples.samples) // batch)
        with progress.steps("calibration", runs * sampler.steps) as advance:
            for start in range(0, len(samples.samples), batch):
                chosen = samples.samples[start : start + batch]
                request = build_request(
                    bundle.sampler,
                    [sample.picture() for sample in chosen],
                    [sample.prompt for sample in chosen],
                    seed=start,
                )
                texts = pipeline.encode_prompts(request.rows)
                references = pipeline.encode_references(request.rows)
                for rows in request.batches():
                    picked = [request.rows[index] for index in rows]
                    pipeline.sample(picked, request, texts, references, lambda *_: advance(1))
    keep(statistics, cached)
    return statistics


def keep(statistics: Statistics, path: Path) -> None:
    """Saves statistics for the next time, where that is possible."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            statistics.save(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)


def digest(checkpoint: Checkpoint, recipe: Recipe, samples: Samples) -> str:
    """Of everything that the statistics depend on: the weights' files, LoRAs, samples, sampler, linears watched."""
    watched = {
        name: sorted(
            weight
            for weight in linear_weights(name, checkpoint.config)
            if recipe.layer_of(name, weight, network.shapes[weight][::-1], True).format in FORMATS
        )
        for name, network in checkpoint.networks.items()
    }
    parts = {
        "version": VERSION,
        "files": checkpoint.identity(),
        "loras": [[lora.digest, lora.weight] for lora in checkpoint.loras],
        "samples": samples.digest(),
        "sampler": repr(checkpoint.config.sampler),
        "watched": watched,
        "attention": recipe.attention,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def about(checkpoint: Checkpoint, samples: Samples) -> dict[str, object]:
    """What the manifest says of a calibration."""
    sampler = checkpoint.config.sampler
    return {
        "samples": samples.name,
        "count": len(samples.samples),
        "skipped": len(samples.skipped),
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "digest": samples.digest(),
    }
