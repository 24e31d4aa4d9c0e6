"""Planned safetensors files."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402

from kontext.export.layouts.safetensors_stream import Made, safetensors_stream  # noqa: E402
from kontext.export.weights.write import write_stream  # noqa: E402


def test_the_file_and_its_metadata(tmp_path: Path) -> None:
    first = [torch.arange(6.0).reshape(2, 3), torch.tensor([1, 2, 3], dtype=torch.uint8)]
    items = [Made((("a", "F32", (2, 3)), ("b", "U8", (3,))), lambda: first)]
    stream = safetensors_stream(items, {"format": "pt"})
    write_stream(stream, tmp_path / "x", 0, lambda _: None, lambda _: None)
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(
            torch.equal(file.get_tensor(name), tensor) for name, tensor in zip("ab", first, strict=True)
        )
    assert stream.size == (tmp_path / "x").stat().st_size


def test_wider_numbers_come_first() -> None:
    items = [Made((("a", "U8", (3,)),), list), Made((("b", "F32", (1,)), ("c", "U8", (4,))), list)]
    stream = safetensors_stream(items)
    assert [each.name for piece in stream.pieces for each in piece.tensors] == ["b", "c", "a"]


def test_numbers_start_at_multiples_of_their_size() -> None:
    items = [Made((("a", "U8", (3,)), ("b", "F32", (1,))), list)]
    with pytest.raises(ValueError, match=r"b would start at byte .* in the middle of a number"):
        safetensors_stream(items)
