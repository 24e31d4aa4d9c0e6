"""Our reader of tensors against the safetensors library, and against damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.dtypes import TORCH_DTYPES  # noqa: E402
from kontext.model.safetensors_file import open_safetensors  # noqa: E402


def file_of(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_every_format_reads_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {}
    for name, dtype in TORCH_DTYPES.items():
        raw = torch.arange(3 * dtype.itemsize * 2, dtype=torch.uint8) % 2
        tensors[name] = raw.view(dtype).reshape(3, 2)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    header = open_safetensors(tmp_path / "a.safetensors")
    assert set(header.tensors) == set(tensors)
    for name, tensor in tensors.items():
        read = header.tensors[name].read()
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert read.numel() == 0 or torch.equal(
            read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        )


def test_a_format_that_pytorch_lacks(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors", {"a": entry("F4", (4,), (0, 2))}, b"\0\0")
    with pytest.raises(KontextError, match="tensor 'a' has the number format F4, which is not supported"):
        open_safetensors(path)


def test_a_file_that_shrinks_after_the_header(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors", {"a": entry()}, b"\0" * 8)
    info = open_safetensors(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KontextError, match="truncated at tensor a"):
        info.read()
    path.unlink()
    with pytest.raises(KontextError, match=f"^cannot read {path}: No such file"):
        info.read()


def test_large_tensors_leave_the_page_cache_and_small_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is read once, and its pages would displace others; 1 MiB is large."""
    pytest.importorskip("fcntl")
    tensors = {"a": torch.arange(1 << 18, dtype=torch.float32), "b": torch.arange((1 << 18) - 1) + 0.5}
    save_file(tensors, tmp_path / "a.safetensors")
    dropped: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _file, *what: dropped.append(what))
    found = open_safetensors(tmp_path / "a.safetensors").tensors
    for name, tensor in tensors.items():
        assert torch.equal(found[name].read(), tensor)
        assert found[name].size == tensor.nbytes
    assert dropped == [(found["a"].start, 1 << 20, os.POSIX_FADV_DONTNEED)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 200), value=st.binary(min_size=1, max_size=4), cut=st.integers(0, 300))
def test_any_damage_is_an_error_or_harmless(tmp_path: Path, position: int, value: bytes, cut: int) -> None:
    header = {"a": entry(), "b": entry("BF16", (2, 3), (8, 20)), "__metadata__": {"format": "pt"}}
    path = file_of(tmp_path / "a.safetensors", header, bytes(range(20)))
    data = bytearray(path.read_bytes())
    data[position : position + len(value)] = value
    path.write_bytes(data[: len(data) - cut] if cut < len(data) else data)
    try:
        tensors = open_safetensors(path).tensors
    except KontextError:
        return
    for info in tensors.values():
        assert info.read().numel() <= 20
