"""Opens a file of weights, safetensors or GGUF by its first bytes, and reads only its header."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..regular_files import open_regular
from .gguf_file import open_gguf
from .safetensors_file import TensorInfo, open_safetensors
from .stored_formats.decode import decode_modules
from .stored_formats.notes import layer_notes
from .stored_weight import StoredWeight

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
"""First bytes of files that torch.save wrote, with its new and old formats."""

NOT_WEIGHTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file: run `git lfs pull` in its folder",
    b"<!DOCTYPE": "is a web page, not weights: download it again",
    b"<html": "is a web page, not weights: download it again",
}


@dataclass(frozen=True)
class WeightFile:
    """`kind` is "safetensors" or "GGUF"; `digest` is the header's SHA-256; `notes` are the header's about the formats
    of modules."""

    path: Path
    kind: str
    tensors: Mapping[str, StoredWeight]
    digest: str
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def open_raw_file(path: Path) -> WeightFile:
    """Reads the header of `path` and no weights. Quantized weights are in pieces, as the file has them.

    Raises:
        KontextError: the file is missing, damaged, or neither safetensors nor GGUF.
    """
    try:
        with open_regular(path) as stream:
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
    notes = layer_notes(path, file.metadata)
    return WeightFile(path, "safetensors", file.tensors, file.digest, notes)


def open_weight_file(path: Path) -> WeightFile:
    """Reads the header of `path`, and of its tensors only notes about formats. Quantized weights have their own shapes,
    and are decoded when they are read.

    Raises:
        KontextError: the file is missing, damaged, neither safetensors nor GGUF, or quantized in a way that is not
            read.
    """
    file = open_raw_file(path)
    return dataclasses.replace(file, tensors=decoded(path, file.tensors, file.notes))


def decoded(
    path: Path, tensors: Mapping[str, StoredWeight], notes: Mapping[str, Mapping[str, Any]]
) -> dict[str, StoredWeight]:
    """The tensors of a file, or of all shards of a component at `path`, with quantized weights in one piece each."""
    plain = {name: info for name, info in tensors.items() if isinstance(info, TensorInfo)}
    others = {name: info for name, info in tensors.items() if name not in plain}
    return {**decode_modules(path, plain, notes), **others}
