"""`--to comfyui`: the transformer in one file for ComfyUI's "Load Diffusion Model"; `--to comfyui-checkpoint`: the
whole model in one file for its "Load Checkpoint".

Names are Black Forest Labs' behind `model.diffusion_model.`; text encoders are transformers' behind
`text_encoders.clip_l.transformer.` and `text_encoders.t5xxl.transformer.`, and the autoencoder is the original one
behind `vae.`, whose attention has 1x1 convolutions.

FP8 comes in two forms. Scaled (`--fp8`): E4M3 codes with one scale for each weight, `weight_scale`, and beside them
`comfy_quant`, JSON as bytes, that names the format; T5's linears too. ComfyUI rounds the inputs of such a linear to
E4M3 as well where the GPU multiplies E4M3. Plain (`:fp8_e4m3fn`): every matrix of the transformer cast to E4M3.
https://github.com/Comfy-Org/ComfyUI, comfy/ops.py (_load_quantized_module) and comfy/sd.py
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import KontextError
from ...quant.formats.fp8 import E4M3_MAX, FP8
from ...safetensors_header import aligned
from .layout import COMPUTE_FORMATS, Layout, PlannedFile
from .safetensors_stream import Made, safetensors_stream, unchanged

if TYPE_CHECKING:
    from torch import Tensor

    from .source import SourceWeight, WeightSource

TRANSFORMER = "model.diffusion_model."

PREFIXES = {
    "modulation": TRANSFORMER,
    "transformer": TRANSFORMER,
    "vae_encoder": "vae.encoder.",
    "vae_decoder": "vae.decoder.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}
"""Network → what its names begin with."""

SCALED = ("modulation", "transformer", "text_encoder_2")
"""Networks whose linears ComfyUI takes with scales; its CLIP has none."""

PLAIN = "fp8_e4m3fn"

NOTE = aligned(json.dumps({"format": "float8_e4m3fn"}).encode())
"""`comfy_quant` of a weight; spaces behind it keep what follows aligned."""


def plan(source: WeightSource, layout: Layout) -> Mapping[str, PlannedFile]:
    plain = source.variant == PLAIN
    if plain and source.recipe.weights == FP8.name:
        raise KontextError(f"--to {layout.name}:{PLAIN} has no scales, and --fp8 has: leave one of them out")
    weights = [weight for component in layout.components for weight in source.weights(component)]
    computes = plain or source.recipe.weights == FP8.name
    return {
        layout.file_name: safetensors_stream(
            [planned(source, each, plain) for each in weights], computes=computes
        )
    }


def planned(source: WeightSource, weight: SourceWeight, plain: bool) -> Made:
    name, shape = PREFIXES[weight.network] + weight.name, comfy_shape(weight)
    if plain and PREFIXES[weight.network] == TRANSFORMER and len(weight.shape) == 2:
        return Made(((name, "F8_E4M3", shape),), partial(cast_to_e4m3, source, weight))
    if weight.layer.format == FP8.name and weight.network in SCALED and not shape[0] * shape[1] % 4:
        module = name.removesuffix(".weight")
        tensors = (
            (f"{module}.weight_scale", "F32", ()),
            (name, "F8_E4M3", shape),
            (f"{module}.comfy_quant", "U8", (len(NOTE),)),
        )
        return Made(tensors, partial(scaled, source, weight))
    return unchanged(source, weight, name, shape)


def comfy_shape(weight: SourceWeight) -> tuple[int, ...]:
    """The weight's shape; the autoencoder's attention has convolutions where ours has linears."""
    convolution = weight.network.startswith("vae_") and len(weight.shape) == 2
    return (*weight.shape, 1, 1) if convolution else weight.shape


def cast_to_e4m3(source: WeightSource, weight: SourceWeight) -> list[Tensor]:
    """Raises KontextError for a weight that does not fit."""
    import torch

    values = source.read_exactly(weight)
    if values.abs().max() > E4M3_MAX:
        raise KontextError(
            f"{weight.network}: weight {weight.name} does not fit into E4M3 without a scale: write --fp8 in the place "
            f"of :{PLAIN}"
        )
    return [values.to(torch.float8_e4m3fn)]


def scaled(source: WeightSource, weight: SourceWeight) -> list[Tensor]:
    """The scale, the codes nearest to weight / scale, and the note.

    The scale has few enough digits for bf16: where ComfyUI unpacks the weight, it multiplies in the format that it
    computes in.
    """
    import torch

    values = source.read_exactly(weight).float()
    least = values.abs().max() / E4M3_MAX
    scale = least.bfloat16()
    if scale < least:
        scale = torch.nextafter(scale, torch.full_like(scale, torch.inf))
    scale = torch.where(scale > 0, scale.float(), 1.0)
    codes = (values / scale).to(torch.float8_e4m3fn)
    return [scale, codes, torch.frombuffer(bytearray(NOTE), dtype=torch.uint8)]


def precision(source: WeightSource) -> list[str]:
    if source.variant == PLAIN:
        return [f"E4M3 weights without scales, the rest in {source.recipe.compute['transformer']}"]
    return [f"{source.recipe.weights} weights"]


def usage(output: Path) -> str:
    return f"{output} goes into ComfyUI's models/diffusion_models, for the node Load Diffusion Model"


def checkpoint_usage(output: Path) -> str:
    return f"{output} goes into ComfyUI's models/checkpoints, for the node Load Checkpoint"


COMFYUI: Layout = Layout(
    name="comfyui",
    readers="ComfyUI's Load Diffusion Model",
    formats=(*COMPUTE_FORMATS, FP8.name),
    variants={PLAIN: "the transformer's matrices cast to E4M3, without scales"},
    components=("transformer",),
    suffix=".safetensors",
    plan=lambda source: plan(source, COMFYUI),
    usage=usage,
    precision=precision,
)

COMFYUI_CHECKPOINT: Layout = dataclasses.replace(
    COMFYUI,
    name="comfyui-checkpoint",
    readers="ComfyUI's Load Checkpoint",
    components=("transformer", "text_encoder", "text_encoder_2", "vae"),
    plan=lambda source: plan(source, COMFYUI_CHECKPOINT),
    usage=checkpoint_usage,
)
