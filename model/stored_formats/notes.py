"""What ComfyUI's files say about the format of their layers: a tensor `comfy_quant` beside each weight, which holds
JSON as bytes, or `_quantization_metadata` in the header, which holds the same for all layers.

https://github.com/Comfy-Org/ComfyUI, comfy/ops.py and comfy/utils.py (convert_old_quants)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...regular_files import parse_json
from ...safetensors_header import unique_names
from ..safetensors_file import TensorInfo

HEADER_KEY = "_quantization_metadata"

MAX_NOTE_BYTES = 4096
"""ComfyUI's take 30 to 80."""

HARMLESS = ("full_precision_matrix_mult", "orig_dtype", "dtype")
"""Keys about how ComfyUI computes, and about the file that was quantized; they do not change a weight's values."""


def read_note(info: TensorInfo) -> dict[str, Any]:
    """The JSON object in a small tensor of bytes.

    Raises:
        KontextError: it is none.
    """
    wrong = KontextError(f"{info.path}: {info.name} is not a JSON object as bytes: the file is damaged")
    if info.dtype != "U8" or len(info.shape) != 1 or not 0 < info.shape[0] <= MAX_NOTE_BYTES:
        raise wrong
    text = info.read_bytes().rstrip(b"\x00")
    return parse(text, wrong)


def parse(text: str | bytes, wrong: KontextError) -> dict[str, Any]:
    try:
        note = parse_json(text, object_pairs_hook=unique_names)
    except ValueError:
        raise wrong from None
    if not isinstance(note, dict):
        raise wrong
    return note


def layer_notes(path: Path, metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Module → its note in the header.

    Raises:
        KontextError: the header's notes are damaged, or of a newer version.
    """
    if HEADER_KEY not in metadata:
        return {}
    wrong = KontextError(
        f"{path}: {HEADER_KEY} in its header is not a JSON object of layers: the file is damaged"
    )
    text = metadata[HEADER_KEY]
    if not isinstance(text, str):
        raise wrong
    notes = parse(text, wrong)
    for key, value in notes.items():
        if key not in ("format_version", "layers"):
            raise KontextError(
                f"{path}: {HEADER_KEY} in its header has the unknown key {key!r}: expected layers"
            )
        if key == "format_version" and str(value).partition(".")[0] != "1":
            raise KontextError(f"{path}: {HEADER_KEY} in its header is of version {value!r}, expected 1.0")
    layers = notes.get("layers")
    if not isinstance(layers, dict) or not all(isinstance(note, dict) for note in layers.values()):
        raise wrong
    return layers


def check_keys(where: str, note: Mapping[str, Any], expected: Mapping[str, tuple[object, ...]]) -> None:
    """Raises KontextError unless a note has nothing but its format, harmless keys, and those `expected`, each with one
    of its values."""
    for key, value in note.items():
        if key in expected:
            if value not in expected[key] or type(value) is not type(expected[key][0]):
                listed = " or ".join(map(repr, expected[key]))
                raise KontextError(f"{where} has {key} {value!r}, expected {listed} for {note['format']}")
        elif key != "format" and key not in HARMLESS:
            raise KontextError(
                f"{where} has the unknown key {key!r}: its {note['format']} may not be the usual one"
            )
