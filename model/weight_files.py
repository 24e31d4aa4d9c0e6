"""Opens a file of weights, safetensors or GGUF by its first bytes, and reads only its header.

ComfyUI's FP8 weights and their scales are combined into one weight, which is scaled when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import KontextError
from .gguf_file import open_gguf
from .safetensors_file import TensorInfo, open_safetensors

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
"""First bytes of files that torch.save wrote, with its new and old formats."""

NOT_WEIGHTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file: run `git lfs pull` in its folder",
    b"<!DOCTYPE": "is a web page, not weights: download it again",
    b"<html": "is a web page, not weights: download it again",
}

SCALES = ("scale_weight", "weight_scale")
"""ComfyUI's old and new name of an FP8 weight's scale, instead of `weight`."""

DROPPED = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant")
"""Other tensors beside ComfyUI's FP8 weights: scales of activations, which are calibrated here, and markers."""


class StoredWeight(Protocol):
    """A tensor in a file, not yet read. `dtype` is the file format's name of its number format."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> Tensor:
        """The tensor, in newly allocated memory, in a float format."""
        ...


@dataclass(frozen=True)
class ScaledWeight:
    """An FP8 weight and the scale to multiply it with: one number, or one for each row."""

    weight: TensorInfo
    scale: TensorInfo

    @property
    def path(self) -> Path:
        return self.weight.path

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def dtype(self) -> str:
        return f"{self.weight.dtype} scaled"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def read(self) -> Tensor:
        scale = self.scale.read().float()
        return self.weight.read().float() * scale.reshape(-1, *[1] * (len(self.shape) - 1))


@dataclass(frozen=True)
class WeightFile:
    """`kind` is "safetensors" or "GGUF"; `digest` is the header's SHA-256."""

    path: Path
    kind: str
    tensors: Mapping[str, StoredWeight]
    digest: str


def open_weight_file(path: Path) -> WeightFile:
    """Reads the header of `path` and no weights.

    Raises:
        KontextError: the file is missing, damaged, or neither safetensors nor GGUF.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(32)
    except FileNotFoundError:
        raise KontextError(f"{path} does not exist") from None
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    if start.startswith(PICKLES):
        raise KontextError(
            f"{path} is a pickle, which can run code when opened, and is not read: if you trust it, convert it with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
        )
    for mark, meaning in NOT_WEIGHTS.items():
        if start.startswith(mark):
            raise KontextError(f"{path} {meaning}")
    if start.startswith(b"GGUF"):
        gguf = open_gguf(path)
        return WeightFile(path, "GGUF", gguf.tensors, gguf.digest)
    file = open_safetensors(path)
    return WeightFile(path, "safetensors", fold_scales(path, file.tensors), file.digest)


def fold_scales(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, StoredWeight]:
    """Combines FP8 weights with their scales, and drops ComfyUI's other tensors.

    Raises:
        KontextError: a scale has no weight or a wrong size, or the weights are in a ComfyUI format other than FP8.
    """
    result: dict[str, StoredWeight] = {}
    for name, info in tensors.items():
        module, _, kind = name.rpartition(".")
        if ".quant_state.bitsandbytes" in name:
            raise KontextError(
                f"{path} holds bitsandbytes weights ({name}): export from the original bf16 file, with --nf4"
            )
        if kind in SCALES:
            check_scale(path, info, tensors.get(f"{module}.weight"))
        elif kind == "comfy_quant":
            check_comfy_format(info)
        elif kind == "weight":
            scales = [tensors[f"{module}.{scale}"] for scale in SCALES if f"{module}.{scale}" in tensors]
            result[name] = ScaledWeight(info, scales[0]) if scales else info
        elif kind not in DROPPED:
            result[name] = info
    return result


def check_scale(path: Path, scale: TensorInfo, weight: TensorInfo | None) -> None:
    count = torch.Size(scale.shape).numel()
    if weight is None or not weight.dtype.startswith("F8"):
        raise KontextError(f"{path}: {scale.name} is a scale without an FP8 weight")
    if scale.dtype not in ("F32", "F16", "BF16") or count not in (1, *weight.shape[:1]):
        raise KontextError(
            f"{path}: {scale.name} is {scale.dtype} {list(scale.shape)}, expected one number or {weight.shape[0]}"
        )


def check_comfy_format(marker: TensorInfo) -> None:
    """Checks ComfyUI's marker of a layer, JSON as bytes: {"format": "float8_e4m3fn"}. Other formats need more than a
    scale."""
    try:
        text = bytes(marker.read().tolist()) if torch.Size(marker.shape).numel() <= 4096 else b""
        chosen = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError):
        raise KontextError(f"{marker.path}: {marker.name} does not name a number format") from None
    if chosen not in ("float8_e4m3fn", "float8_e5m2"):
        raise KontextError(
            f"{marker.path}: {marker.name} is {chosen!r}, expected FP8: export from the original bf16 file"
        )
