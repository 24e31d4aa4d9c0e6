"""Numbers decoded from bytes are those that PyTorch reads: every code of narrow formats, samples of wide ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from kontext.model.dtypes import TORCH_DTYPES  # noqa: E402
from kontext.model.safetensors_file import TensorInfo, open_safetensors  # noqa: E402
from kontext.model.stored_numbers import is_zero, read_numbers  # noqa: E402


def stored(folder: Path, tensor: torch.Tensor) -> TensorInfo:
    save_file({"x": tensor}, folder / "x.safetensors")
    return open_safetensors(folder / "x.safetensors").tensors["x"]


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_numbers(name: str, tmp_path: Path) -> None:
    dtype = TORCH_DTYPES[name]
    if dtype.itemsize == 1:
        codes = torch.arange(2 if name == "BOOL" else 256, dtype=torch.int16).to(torch.uint8)
        tensor = codes.view(dtype)
    elif dtype.is_floating_point:
        tensor = torch.tensor([0.0, -0.0, 1.5, -3.25e-3, 6.1e4, math.inf, -math.inf, math.nan]).to(dtype)
    else:
        tensor = torch.tensor([0, 1, -1, 2 ** (8 * dtype.itemsize - 1) - 1]).to(dtype)
    expected = (tensor.float() if dtype.is_floating_point and dtype.itemsize < 4 else tensor).tolist()
    found = read_numbers(stored(tmp_path, tensor))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == theirs or (math.isnan(ours) and math.isnan(theirs)), name
        assert type(ours) is type(theirs)


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_zeros(name: str, tmp_path: Path) -> None:
    """PyTorch's `any`, of all zeros, of negative zeros, and of one bit in each byte."""
    dtype = TORCH_DTYPES[name]
    zeros = torch.zeros(3 * dtype.itemsize, dtype=torch.uint8)
    for place in (None, *range(len(zeros))):
        for value in (1, 0x80) if name != "BOOL" else (1,):
            data = zeros.clone()
            if place is not None:
                data[place] = value
            tensor = data.view(dtype)
            assert is_zero(stored(tmp_path, tensor)) == (not tensor.double().any()), (place, value)
    assert is_zero(stored(tmp_path, torch.zeros(0, 4).to(dtype)))
