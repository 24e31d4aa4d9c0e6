"""Unpacks FP8 and INT8 weights to 16 bits in one pass, for products of many rows, where cuBLAS is then faster.

    out[k, n] = weight[k, n] * scale[n]

A pass over a weight of n bytes moves 3n bytes; a product of 8704 rows takes hundreds of times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Launch, cdiv, jit, require, tl
from .numeric import CODES, float_tile
from .operators import register_operator

ROWS, COLUMNS = 16, 512
"""Weights that a program unpacks."""


def dequantize_8bit_reference(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Reference implementation in PyTorch: E4M3 or INT8 [in, out] with scales [out] → [in, out] in `dtype`."""
    check_dequantize_8bit(weight, scale)
    return (weight.float() * scale.float()).to(dtype)


@jit()
def dequantize_8bit_kernel(  # type: ignore[no-untyped-def]
    weight, scale, out, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program per tile.

    Parameters:
        weight: [height, width], contiguous; INT8, or the bytes of E4M3 as uint8.
        scale: [width], fp32 or 16-bit.
        out: output [height, width], contiguous, fp32 or 16-bit.
        height, width: input and output channels; arguments, so that one compiled kernel serves weights of all sizes.
        ROWS, COLUMNS: size of a tile.

    Grid: (ceil(height / ROWS), ceil(width / COLUMNS)).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    by = tl.load(scale + columns, mask=columns < width, other=0.0).to(tl.float32)
    values = float_tile(tl.load(weight + at, mask=inside, other=0)) * by[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


def check_dequantize_8bit(weight: Tensor, scale: Tensor) -> None:
    """Raises KontextError for operands that do not go together."""
    require(
        weight.dtype in CODES.values() and weight.ndim == 2 and weight.is_contiguous(),
        f"8-bit weights must be E4M3 or INT8 [in, out], contiguous, not {weight.dtype} {list(weight.shape)}",
    )
    require(
        tuple(scale.shape) == (weight.shape[1],) and scale.is_contiguous(),
        f"there must be a scale for each of {weight.shape[1]} output channels, not {list(scale.shape)}",
    )


def plan_dequantize_8bit(weight: Tensor, scale: Tensor, out: Tensor) -> Launch:
    """The launch; operands as in `dequantize_8bit_reference`, its result is written into `out` [in, out]."""
    check_dequantize_8bit(weight, scale)
    height, width = weight.shape
    return Launch(
        dequantize_8bit_kernel,
        (cdiv(height, ROWS), cdiv(width, COLUMNS), 1),
        {
            "weight": weight.view(torch.uint8) if weight.dtype == torch.float8_e4m3fn else weight,
            "scale": scale,
            "out": out,
            "height": height,
            "width": width,
        },
        {"ROWS": ROWS, "COLUMNS": COLUMNS},
        warps=8,
        stages=1,
    )


def launch_dequantize_8bit(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    plan_dequantize_8bit(weight, scale, out).run()
    return out


def fake_dequantize_8bit(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    check_dequantize_8bit(weight, scale)
    return torch.empty_like(weight, dtype=dtype)


dequantize_8bit_op = register_operator(
    "dequantize_8bit(Tensor weight, Tensor scale, ScalarType dtype) -> Tensor",
    launch_dequantize_8bit,
    dequantize_8bit_reference,
    fake_dequantize_8bit,
)
