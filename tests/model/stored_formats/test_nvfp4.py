"""NVFP4 against comfy-kitchen, whose result is recorded, and against the formula."""

from __future__ import annotations

import hashlib

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.model.stored_formats.nvfp4 import VALUES  # noqa: E402

ROWS, COLUMNS = 144, 80  # two rows and two columns of tiles, neither of them full

KITCHEN = "0463d68c575fc0c0b299ee8bb57a62ba57b8a6a32328f05adfb1083d75d5cdd7"
"""SHA-256 of comfy_kitchen 0.2.40's dequantize_nvfp4(weight, weight_scale_2, weight_scale, torch.float32), "eager"
backend, for `module()`."""


def module() -> dict[str, torch.Tensor]:
    packed = (torch.arange(ROWS * COLUMNS // 2) * 73 + 19) % 256
    scales = (torch.arange(256 * 8) * 29 + 7) % 120 + 4
    return {
        "weight": packed.to(torch.uint8).reshape(ROWS, COLUMNS // 2),
        "weight_scale": scales.to(torch.uint8).reshape(256, 8).view(torch.float8_e4m3fn),
        "weight_scale_2": torch.tensor(0.0123),
    }


def test_recorded(stored) -> None:
    read = stored(module(), "nvfp4")
    assert (read.shape, read.dtype) == ((ROWS, COLUMNS), "NVFP4")
    assert hashlib.sha256(read.read().numpy().tobytes()).hexdigest() == KITCHEN


@pytest.mark.parametrize("place", [(0, 0), (33, 17), (143, 79), (128, 64), (100, 63)])
def test_formula(place, stored) -> None:
    row, column = place
    tensors = module()
    byte = int(tensors["weight"][row, column // 2])
    code = byte >> 4 if column % 2 == 0 else byte & 15
    value = (-1) ** (code >> 3) * VALUES[code & 7]
    block = column // 16
    # cuBLAS: in a tile of 128×4, (row % 32) · 16 + (row % 128 // 32) · 4 + column; two tiles for each row of tiles
    offset = (row // 128 * 2 + block // 4) * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4
    scale = float(tensors["weight_scale"].flatten()[offset].float())
    assert float(stored(tensors, "nvfp4").read()[place]) == pytest.approx(value * scale * 0.0123, rel=1e-6)


def test_input_factors(stored) -> None:
    """ComfyUI multiplies the layer's input with `pre_quant_scale`: the same as the weight's columns."""
    factors = torch.arange(1, COLUMNS + 1).float() / 8
    plain = stored(module(), "nvfp4").read()
    assert torch.equal(stored({**module(), "pre_quant_scale": factors}, "nvfp4").read(), plain * factors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight_scale": torch.ones(144, 5).to(torch.float8_e4m3fn)}, r"\[144, 5\], expected .*\[256, 8\]"),
        ({"weight_scale": torch.ones(256, 8)}, "m.weight_scale is F32"),
        ({"weight_scale_2": torch.ones(144)}, r"m.weight_scale_2 is F32 \[144\], expected F32 \[\] or \[1\]"),
        ({"pre_quant_scale": torch.ones(40)}, r"m.pre_quant_scale is F32 \[40\]"),
        (
            {"weight": torch.ones(144, 36, dtype=torch.uint8)},
            "rows of 72 values, expected whole blocks of 16",
        ),
        ({"weight": torch.ones(144, 40)}, "expected a matrix in U8"),
    ],
)
def test_faults(tensors, message, stored) -> None:
    with pytest.raises(KontextError, match=message):
        stored({**module(), **tensors}, "nvfp4")


def test_block_size(stored) -> None:
    assert stored(module(), {"format": "nvfp4", "group_size": 16, "orig_shape": [144, 80]}).shape == (144, 80)
    with pytest.raises(KontextError, match="has group_size 32, expected 16 for nvfp4"):
        stored(module(), {"format": "nvfp4", "group_size": 32})


def test_without_a_note(stored) -> None:
    """Model Optimizer's files have the same names, with the low half first and scales in rows."""
    with pytest.raises(
        KontextError, match="nothing in the file says which format it has: export from the bf16"
    ):
        stored(module())
