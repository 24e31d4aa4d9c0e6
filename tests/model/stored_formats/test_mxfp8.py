"""MXFP8 against comfy-kitchen, whose result is recorded."""

from __future__ import annotations

import hashlib

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402

ROWS, COLUMNS = 160, 160  # two rows and two columns of tiles, neither of them full

KITCHEN = "5b094c141da5ec5bf98c61ddc7001407c5f125bd8a066f59355e46ca7d90051b"
"""SHA-256 of comfy_kitchen 0.2.40's dequantize_mxfp8(weight, weight_scale, torch.float32), "eager" backend, for
`module()`."""


def module(dtype: torch.dtype = torch.float8_e8m0fnu) -> dict[str, torch.Tensor]:
    codes = (torch.arange(ROWS * COLUMNS) * 73 + 19) % 254
    codes += (codes >= 127).long()  # without the two NaN, 127 and 255
    scales = (torch.arange(256 * 8) * 29 + 7) % 60 + 90
    return {
        "weight": codes.to(torch.uint8).reshape(ROWS, COLUMNS).view(torch.float8_e4m3fn),
        "weight_scale": scales.to(torch.uint8).reshape(256, 8).view(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.uint8])
def test_recorded(dtype, stored) -> None:
    read = stored(module(dtype), {"format": "mxfp8", "block_size": 32, "full_precision_matrix_mult": False})
    assert (read.shape, read.dtype) == ((ROWS, COLUMNS), "MXFP8")
    assert hashlib.sha256(read.read().numpy().tobytes()).hexdigest() == KITCHEN


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight_scale": torch.ones(160, 5, dtype=torch.uint8)}, r"U8 \[160, 5\], expected .*\[256, 8\]"),
        ({"weight_scale": torch.ones(256, 8)}, "m.weight_scale is F32"),
        ({"weight": torch.ones(160, 144).to(torch.float8_e4m3fn)}, "expected whole blocks of 32"),
        ({"weight": torch.ones(160, 160).to(torch.float8_e5m2)}, "expected a matrix in F8_E4M3"),
        ({"weight_scale_2": torch.ones(())}, "weight_scale_2 does not belong to mxfp8"),
    ],
)
def test_faults(tensors, message, stored) -> None:
    with pytest.raises(KontextError, match=message):
        stored({**module(), **tensors}, "mxfp8")


def test_without_a_note(stored) -> None:
    with pytest.raises(KontextError, match=r"m.weight_scale is F8_E8M0 \[256, 8\], expected F32"):
        stored(module())
