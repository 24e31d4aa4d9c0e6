"""Formats of quantized files that are recognized, and not read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import KontextError
from .module import INSTEAD

MARKS = {
    "wscales": "Nunchaku's SVDQuant",
    "smooth_factor": "Nunchaku's SVDQuant",
    "qzeros": "GPTQ or AWQ",
    "qweight": "GPTQ, AWQ or SVDQuant",
    "weight_packed": "compressed-tensors",
    "weight_s_rel": "ComfyUI's asym_w4a8_int8",
    "weight_s_channel": "ComfyUI's asym_w4a8_int8",
    "weight_codebook": "ComfyUI's asym_w4a8_int8",
    "weight_zeros": "ComfyUI's awq_w4a16",
    "weight_quantizer._amax": "Model Optimizer's simulated quantization",
    "weight_quantizer._scale": "Model Optimizer",
    "weight_scale_inv": "FP8 in blocks of 128×128",
    "weight._data": "optimum-quanto",
    "weight._scale": "optimum-quanto",
    "weight_qdata": "torchao",
    "weight:qdata": "torchao",
    "W_q": "HQQ",
    "encoded_exponent": "DFloat11",
}
"""Ending of a tensor's name → what writes it."""

COMFY = {
    "svdquant_w4a4": "SVDQuant",
    "svdq": "SVDQuant",
    "convrot_w4a4": "ConvRot, 4-bit codes of rotated weights",
    "asym_w4a8_int8": "W4A8, 4-bit codes with a codebook",
    "awq_w4a16": "AWQ",
}
"""ComfyUI's names of formats that are not read → what they are."""


def refuse_others(path: Path, names: Iterable[str]) -> None:
    """Raises KontextError if one of the tensors is of a format that is known, and not read."""
    listed = list(names)
    for mark, maker in MARKS.items():
        for name in listed:
            if name.endswith(mark) and name.removesuffix(mark)[-1:] in (".", ""):
                raise KontextError(
                    f"{path} holds weights of {maker}, which are not read (tensor {name}): {INSTEAD}"
                )


def unknown_format(where: str, format: object, known: Iterable[str]) -> KontextError:
    """An error about a note's format."""
    if isinstance(format, str) and format in COMFY:
        return KontextError(f"{where} says {format}, {COMFY[format]}, which is not read: {INSTEAD}")
    return KontextError(f"{where} says {str(format)[:80]!r}, expected {', '.join(known)}: {INSTEAD}")
