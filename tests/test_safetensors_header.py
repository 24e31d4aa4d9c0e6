"""The header reader against files that lie, and the writer against the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from kontext.errors import KontextError
from kontext.safetensors_header import BITS, make_header, read_header


def file_of(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_places_and_metadata_of_a_file_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.int8)}, path, {"x": "y"}
    )
    header = read_header(path)
    assert header.metadata == {"x": "y"}
    a, b = header.tensors["a"], header.tensors["b"]
    assert (a.dtype, a.shape, a.size) == ("F32", (2, 3), 24)
    assert (b.dtype, b.shape, b.size) == ("I8", (0,), 0)
    assert np.array_equal(np.frombuffer(path.read_bytes()[a.start : a.stop], np.float32), np.arange(6))


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header, places = make_header([("a", "F32", (3,)), ("b", "U8", (2, 2)), ("c", "F64", ())])
    assert len(header) % 8 == 0
    assert [place.start - len(header) for place in places.values()] == [0, 12, 16]
    values = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.uint8), "c": np.float64(7)}
    path.write_bytes(header + b"".join(value.tobytes() for value in values.values()))
    assert read_header(path).tensors == places
    assert all(np.array_equal(tensor, values[name]) for name, tensor in load_file(path).items())


@pytest.mark.parametrize(("dtype", "bits"), BITS.items())
def test_numbers_are_as_wide_as_the_library_says(tmp_path: Path, dtype: str, bits: int) -> None:
    """Eight of them take as many bytes as one takes bits."""
    path = file_of(tmp_path / "a.safetensors", {"a": entry(dtype, (8,), (0, bits))}, bytes(bits))
    with safe_open(path, "np") as file:
        assert list(file.keys()) == ["a"]
    assert read_header(path).tensors["a"].size == bits


def test_any_order_in_the_header_and_no_tensors(tmp_path: Path) -> None:
    header = {"b": entry(offsets=(8, 16)), "a": entry()}
    assert list(read_header(file_of(tmp_path / "a", header, bytes(16))).tensors) == ["b", "a"]
    assert read_header(file_of(tmp_path / "b", b"{}")).tensors == {}
    with pytest.raises(KontextError, match="is not a safetensors file"):
        read_header(file_of(tmp_path / "c", b"0"))


@pytest.mark.parametrize(("last", "fits"), [(1 << 30, True), ((1 << 31) - 1, True), (1 << 31, False)])
def test_strides_of_empty_tensors_fit_into_64_bits(tmp_path: Path, last: int, fits: bool) -> None:
    """The product of the other lengths is below 2^62; PyTorch computes strides in signed 64 bits."""
    shape = (0, 1 << 31, last)
    path = file_of(tmp_path / "a.safetensors", {"a": entry(shape=shape, offsets=(0, 0))})
    if fits:
        assert read_header(path).tensors["a"].shape == shape
    else:
        with pytest.raises(KontextError, match="damaged safetensors header at 'a'"):
            read_header(path)


def test_as_many_dimensions_as_pytorch_has(tmp_path: Path) -> None:
    """64: a tensor of 65 could be stored, but not made."""
    path = file_of(tmp_path / "a", {"a": entry(shape=(1,) * 63 + (2,))}, bytes(8))
    assert len(read_header(path).tensors["a"].shape) == 64
    file_of(path, {"a": entry(shape=(1,) * 64 + (2,))}, bytes(8))
    with pytest.raises(KontextError, match="damaged safetensors header at 'a'"):
        read_header(path)


def test_a_file_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    data = file_of(tmp_path / "a", {"a": entry()}, bytes(8)).read_bytes()
    for size in range(8, len(data)):
        (tmp_path / "b").write_bytes(data[:size])
        with pytest.raises(KontextError, match=r"b is truncated: .*: download it again"):
            read_header(tmp_path / "b")


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": entry()}, 7, "truncated"),
        ({"a": entry()}, 9, "1 bytes more"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "out of place"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "out of place"),
        ({"a": entry(shape=(3,))}, 8, "damaged"),
        ({"a": entry(shape=(-2,))}, 8, "damaged"),
        ({"a": entry(shape=(1 << 40, 1 << 40), offsets=(0, 1 << 61))}, 8, "damaged"),
        ({"a": entry(dtype="F31")}, 8, "unknown number format 'F31'"),
        ({"a": entry(dtype=["F32"])}, 8, "unknown number format"),
        ({"a": entry(offsets=(8, 0))}, 8, "damaged"),
        ({"a": entry(offsets=(0.0, 8.0))}, 8, "damaged"),
        ({"a": [1]}, 8, "damaged"),
        ([1, 2], 0, "not a JSON object"),
        (b'{"a": {}, "a": {}}', 0, "twice"),
        (b"{nonsense", 0, "damaged"),
        (b"\xff\xfe{}", 0, "damaged"),
        (b"[" * 100_000, 0, "damaged"),
    ],
)
def test_a_header_that_lies_is_one_clear_error(tmp_path: Path, header, size: int, message: str) -> None:
    path = file_of(tmp_path / "a.safetensors", header, b"\0" * size)
    with pytest.raises(KontextError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\0" * 8, "not a safetensors file"),
        (b"PK\x03\x04" + b"\0" * 100, "truncated"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        ((500).to_bytes(8, "little") + b"{}", "truncated"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(KontextError, match=message):
        read_header(tmp_path / "a.safetensors")


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match="missing"):
        read_header(tmp_path / "a.safetensors")
    with pytest.raises(KontextError, match="cannot read"):
        read_header(tmp_path)
