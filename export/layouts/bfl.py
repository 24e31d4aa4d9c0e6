"""`--to bfl`: the transformer in one safetensors file with Black Forest Labs' names, as their own code, diffusers'
`from_single_file` and ComfyUI's "Load Diffusion Model" read it.

These are the networks' native names (`model.network_shapes`), so nothing is renamed or split.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .layout import COMPUTE_FORMATS, Layout, PlannedFile
from .safetensors_stream import Made, safetensors_stream

if TYPE_CHECKING:
    from torch import Tensor

    from .source import SourceWeight, WeightSource


def plan(source: WeightSource) -> Mapping[str, PlannedFile]:
    items = [
        Made(((weight.name, source.dtype(weight.network), weight.shape),), partial(read_one, source, weight))
        for weight in source.weights("transformer")
    ]
    return {BFL.file_name: safetensors_stream(items)}


def read_one(source: WeightSource, weight: SourceWeight) -> list[Tensor]:
    return [source.read(weight)]


def usage(output: Path) -> str:
    return f"{output} goes into ComfyUI's models/diffusion_models, or into FluxTransformer2DModel.from_single_file"


BFL = Layout(
    name="bfl",
    readers="Black Forest Labs' code, diffusers and ComfyUI",
    formats=COMPUTE_FORMATS,
    components=("transformer",),
    suffix=".safetensors",
    plan=plan,
    usage=usage,
)
