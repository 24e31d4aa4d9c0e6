"""What kernels with one program for each row have in common: their launch, and the row's way to memory, as it is or
quantized by token.
"""

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
    """The launch over rows of [batch, tokens, width]; a program holds a whole one in its registers."""
    batch, tokens, width = shape
    block = power_of_two(width)
    return Launch(
        kernel,
        (batch * tokens, 1, 1),
        arguments,
        {"BLOCK": block, **constants},
        # 8 values of 16 bits a thread and load are 16 bytes.
        warps=min(max(block // 1024, 1), 16),
        stages=1,
        varying=("tokens",),
    )


def row_constants(out_scale: Tensor | None, format: str) -> dict[str, object]:
    """What `store_row` is compiled for; without scales the row is stored as it is."""
    return {
        "QUANTIZE": out_scale is not None,
        "INTEGER": format == "int8",
        "LIMIT": LIMITS.get(format, 0.0),
        "MIN_AMAX": MIN_AMAX,
    }


def empty_codes(like: Tensor, shape: tuple[int, ...], format: str) -> tuple[Tensor, Tensor]:
    """Codes of `shape` and fp32 scales [batch, tokens], not filled."""
    check_format(format)
    return like.new_empty(shape, dtype=CODES[format]), like.new_empty(shape[:2], dtype=torch.float32)


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
    """y fp32 [BLOCK], zero beyond WIDTH: in the format of `out`, or as codes and their scale."""
    if QUANTIZE:
        step = tl.maximum(tl.max(tl.abs(y), 0), MIN_AMAX) / LIMIT
        tl.store(out_scale + row, step)
        tl.store(out + row * WIDTH + columns, quantize_tile(y, step, INTEGER, LIMIT), mask=columns < WIDTH)
    else:
        tl.store(out + row * WIDTH + columns, y.to(out.dtype.element_ty), mask=columns < WIDTH)
