"""`--to bfl`: the transformer in one safetensors file with Black Forest Labs' names, as their own code, diffusers'
`from_single_file` and ComfyUI's "Load Diffusion Model" read it.

These are the networks' native names (`model.network_shapes`), so nothing is renamed or split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .layout import COMPUTE_FORMATS, Layout, PlannedFile
from .safetensors_stream import safetensors_stream, unchanged

if TYPE_CHECKING:
    from .source import WeightSource


def plan(source: WeightSource) -> Mapping[str, PlannedFile]:
    items = [unchanged(source, weight, weight.name, weight.shape) for weight in source.weights("transformer")]
    return {BFL.file_name: safetensors_stream(items)}


def usage(output: Path) -> str:
    return (
        f"{output} goes into ComfyUI's models/diffusion_models, or, with FLUX's sizes, into "
        "FluxTransformer2DModel.from_single_file"
    )


BFL = Layout(
    name="bfl",
    readers="Black Forest Labs' code, diffusers and ComfyUI",
    formats=COMPUTE_FORMATS,
    components=("transformer",),
    suffix=".safetensors",
    plan=plan,
    usage=usage,
)
