"""Opens a file of weights by its header alone. What it is, its first bytes say: safetensors or GGUF.

ComfyUI's scaled FP8 weights come out as one weight each, their scale folded in as they are read.
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
from .gguf_file import read_gguf
from .safetensors_file import TensorInfo, open_safetensors

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
"""First bytes of what torch.save has written, new and old."""

NOT_WEIGHTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run `git lfs pull` where it is",
    b"<!DOCTYPE": "is a web page, not weights: its download went wrong",
    b"<html": "is a web page, not weights: its download went wrong",
}

SCALES = ("scale_weight", "weight_scale")
"""ComfyUI's old and new name of an FP8 weight's scale, in the place of `weight`."""

DROPPED = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant")
"""What else ComfyUI puts beside FP8 weights: scales of activations, which we calibrate, and markers."""


class StoredWeight(Protocol):
    """A tensor in a file, not yet read. `dtype` is the file's own word for its number format."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> Tensor:
        """The tensor, in memory of its own, in a float format."""
        ...


@dataclass(frozen=True)
class ScaledWeight:
    """An FP8 weight and the scale that it is to be multiplied with: one number, or one for each row."""

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
    """`kind` is "safetensors" or "GGUF"; `digest` the SHA-256 of the header's bytes."""

    path: Path
    kind: str
    tensors: Mapping[str, StoredWeight]
    digest: str


def open_weight_file(path: Path) -> WeightFile:
    """Reads the header of `path`, and no weight.

    Raises:
        KontextError: it is missing, damaged, or neither safetensors nor GGUF.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(32)
    except FileNotFoundError:
        raise KontextError(f"{path} does not exist") from None
    except OSError as fault:
        raise KontextError(f"cannot read {path}: {fault.strerror}") from None
    if start.startswith(PICKLES):
        raise KontextError(
            f"{path} is a pickle, which can run code when opened, and is not read: convert it where you trust it, "
            "with safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
        )
    for mark, meaning in NOT_WEIGHTS.items():
        if start.startswith(mark):
            raise KontextError(f"{path} {meaning}")
    if start.startswith(b"GGUF"):
        gguf = read_gguf(path)
        return WeightFile(path, "GGUF", gguf.tensors, gguf.digest)
    file = open_safetensors(path)
    return WeightFile(path, "safetensors", fold_scales(path, file.tensors), file.digest)


def fold_scales(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, StoredWeight]:
    """The weights proper: FP8 weights take their scales in, ComfyUI's other additions are left out.

    Raises:
        KontextError: a scale has no weight or the wrong size, or the weights are in a format that is not FP8's.
    """
    result: dict[str, StoredWeight] = {}
    for name, info in tensors.items():
        module, _, kind = name.rpartition(".")
        if ".quant_state.bitsandbytes" in name:
            raise KontextError(
                f"{path} holds bitsandbytes weights ({name}): export from the bf16 file it was made of, with --nf4"
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
        raise KontextError(f"{path}: {scale.name} is a scale, and beside it is no FP8 weight")
    if scale.dtype not in ("F32", "F16", "BF16") or count not in (1, *weight.shape[:1]):
        raise KontextError(
            f"{path}: {scale.name} is {scale.dtype} {list(scale.shape)}, expected one number or {weight.shape[0]}"
        )


def check_comfy_format(marker: TensorInfo) -> None:
    """ComfyUI's note on a layer is JSON in bytes, {"format": "float8_e4m3fn"}; other formats are not only a scale."""
    try:
        text = bytes(marker.read().tolist()) if torch.Size(marker.shape).numel() <= 4096 else b""
        chosen = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError):
        raise KontextError(f"{marker.path}: {marker.name} is not a note on a number format") from None
    if chosen not in ("float8_e4m3fn", "float8_e5m2"):
        raise KontextError(
            f"{marker.path}: {marker.name} says {chosen!r}, expected FP8: export from the bf16 file it was made of"
        )
