"""What kernels with one program per row share: their launch, a program's row, and storing it, quantized or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .launch import Launch, jit, power_of_two, tl
from .numeric import CODES, LIMITS, MIN_AMAX, check_format, quantize_tile


def plan_rows(
    kernel: Any, shape: tuple[int, ...], arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> Launch:
    """The launch of a kernel over the rows of [batch, tokens, width]; a program holds a whole row in registers."""
    batch, tokens, width = shape
    block = power_of_two(width)
    return Launch(
        kernel,
        (batch * tokens, 1, 1),
        arguments,
        {"BLOCK": block, **constants},
        # A thread loads 16 bytes at a time: 8 values of 16 bits.
        warps=min(max(block // 1024, 1), 16),
        stages=1,
        varying=("tokens",),
    )


def row_arguments(tokens: int, **tensors: Tensor | None) -> dict[str, int]:
    """The arguments tokens, and NAME_batch and NAME_token, strides of each [batch, tokens, width]; 0 for None."""
    arguments = {"tokens": tokens}
    for name, tensor in tensors.items():
        batch, token = (0, 0) if tensor is None else tensor.stride()[:2]
        arguments |= {f"{name}_batch": batch, f"{name}_token": token}
    return arguments


def row_constants(out_scale: Tensor | None, format: str) -> dict[str, object]:
    """The constants of `store_row`: with scales it quantizes to `format`, without it rounds to the output's dtype."""
    return {
        "QUANTIZE": out_scale is not None,
        "INTEGER": format == "int8",
        "LIMIT": LIMITS.get(format, 0.0),
        "MIN_AMAX": MIN_AMAX,
    }


def empty_codes(like: Tensor, shape: tuple[int, ...], format: str) -> tuple[Tensor, Tensor]:
    """Empty codes of `shape` and fp32 scales [batch, tokens]."""
    check_format(format)
    return like.new_empty(shape, dtype=CODES[format]), like.new_empty(shape[:2], dtype=torch.float32)


@jit()
def program_row(tokens):  # type: ignore[no-untyped-def]
    """A program's row of [batch * tokens], its batch index and its token; int64, for addresses."""
    row = tl.program_id(0).to(tl.int64)
    return row, row // tokens, row % tokens


@jit()
def store_row(  # type: ignore[no-untyped-def]
    y,
    row,
    columns,
    out,
    out_scale,
    WIDTH: tl.constexpr,
    QUANTIZE: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """Stores a row y, rounded to the dtype of `out`, or as codes with one scale.

    Parameters:
        y: fp32 [BLOCK], zero from WIDTH on.
        row: index of the row.
        columns: 0 to BLOCK - 1.
        out: [rows, WIDTH], contiguous; codes if QUANTIZE.
        out_scale: fp32 [rows]; None unless QUANTIZE.
        WIDTH: channels.
        QUANTIZE: store codes and a scale.
        INTEGER: codes are INT8; otherwise E4M3.
        LIMIT: the largest code, 127 or 448.
        MIN_AMAX: amax of a row of zeros, so that no scale is zero.
    """
    if QUANTIZE:
        step = tl.maximum(tl.max(tl.abs(y), 0), MIN_AMAX) / LIMIT
        tl.store(out_scale + row, step)
        tl.store(out + row * WIDTH + columns, quantize_tile(y, step, INTEGER, LIMIT), mask=columns < WIDTH)
    else:
        tl.store(out + row * WIDTH + columns, y.to(out.dtype.element_ty), mask=columns < WIDTH)
