"""An engine's weights in the bundle's safetensors file: read in place, and refused if they are not the engine's."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.runtime.backends.tensorrt.weights import MappedWeights


def one_tensor(name: str, data: bytes) -> bytes:
    """A safetensors file of one fp32 tensor."""
    entry = {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [0, len(data)]}
    header = json.dumps({name: entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


def test_a_tensor_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(one_tensor("layer.weight", b"12345678"))
    weights = MappedWeights(path)
    entry = weights.entry("layer.weight", 8)
    assert ctypes.string_at(weights.address(entry), entry.size) == b"12345678"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no header", "is not a safetensors file"),
        (
            one_tensor("other", bytes(8)),
            "needs 8 bytes of layer.weight, but .* has no such tensor: build the engines",
        ),
        (
            one_tensor("layer.weight", bytes(4)),
            "needs 8 bytes of layer.weight, but .* has 4: build the engines",
        ),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(data)
    with pytest.raises(KontextError, match=message):
        MappedWeights(path).entry("layer.weight", 8)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="nowhere"):
        MappedWeights(tmp_path / "nowhere")
