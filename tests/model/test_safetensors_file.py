"""Our header reader against the safetensors library, and against files that lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.safetensors_file import DTYPES, read_header  # noqa: E402


def file_of(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_every_format_reads_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {}
    for name, dtype in DTYPES.items():
        raw = torch.arange(3 * dtype.itemsize * 2, dtype=torch.uint8) % 2
        tensors[name] = raw.view(dtype).reshape(3, 2)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "a.safetensors")
    assert set(header.tensors) == set(tensors)
    for name, tensor in tensors.items():
        read = header.tensors[name].read()
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert read.numel() == 0 or torch.equal(
            read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        )


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


def test_a_file_that_shrinks_after_the_header(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors", {"a": entry()}, b"\0" * 8)
    info = read_header(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KontextError, match="truncated at tensor a"):
        info.read()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 200), value=st.binary(min_size=1, max_size=4), cut=st.integers(0, 300))
def test_any_damage_is_an_error_or_harmless(tmp_path: Path, position: int, value: bytes, cut: int) -> None:
    header = {"a": entry(), "b": entry("BF16", (2, 3), (8, 20)), "__metadata__": {"format": "pt"}}
    path = file_of(tmp_path / "a.safetensors", header, bytes(range(20)))
    data = bytearray(path.read_bytes())
    data[position : position + len(value)] = value
    path.write_bytes(data[: len(data) - cut] if cut < len(data) else data)
    try:
        tensors = read_header(path).tensors
    except KontextError:
        return
    for info in tensors.values():
        assert info.read().numel() <= 20
