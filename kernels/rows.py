"""What kernels with one program per row share: their launch, a program's row, and storing it, quantized or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .blocks import NVFP4, check_block_scale, empty_blocks, quantize_blocks, store_blocks
from .launch import Launch, jit, power_of_two, require, tl
from .numeric import CODES, LIMITS, MIN_AMAX, quantize_rows, quantize_tile

LEAST = 64
"""Channels of the shortest row: those of a tile of NVFP4 scales, which are written together."""


def plan_rows(
    kernel: Any, shape: tuple[int, ...], arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> Launch:
    """The launch of a kernel over the rows of [batch, tokens, width]; a program holds a whole row in registers."""
    batch, tokens, width = shape
    block = max(power_of_two(width), LEAST)
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
        "BLOCKS": format == NVFP4,
        "INTEGER": format == "int8",
        "LIMIT": LIMITS.get(format, 0.0),
        "MIN_AMAX": MIN_AMAX,
    }


def empty_codes(like: Tensor, shape: tuple[int, ...], format: str) -> tuple[Tensor, Tensor]:
    """Empty codes of values of `shape` and fp32 scales [batch, tokens]; NVFP4's as `blocks.quantize_blocks` returns
    them."""
    formats = (*CODES, NVFP4)
    require(format in formats, f"activations can be quantized to {' or '.join(formats)}, not to {format!r}")
    if format == NVFP4:
        return empty_blocks(like, shape)
    return like.new_empty(shape, dtype=CODES[format]), like.new_empty(shape[:2], dtype=torch.float32)


def quantize(y: Tensor, format: str, block_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Reference implementation of `store_row` in PyTorch: codes and scales of fp32 y [batch, tokens, width].

    Args:
        format: "fp8", "int8" or "nvfp4".
        block_scale: fp32 [1], the scale of all NVFP4 inputs; None for other formats.
    """
    check_block_scale(format, block_scale)
    return quantize_rows(y, format) if block_scale is None else quantize_blocks(y, block_scale)


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
    block_scale,
    tokens,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """Stores a row y, rounded to the dtype of `out`, or as codes with one scale or a scale for each block.

    Parameters:
        y: fp32 [COLUMNS], zero from WIDTH on.
        row: index of the row.
        columns: 0 to COLUMNS - 1.
        out: [rows, WIDTH], contiguous; codes if QUANTIZE.
        out_scale: fp32 [rows]; None unless QUANTIZE.
        block_scale: fp32 [1]; None unless BLOCKS.
        tokens: rows of each batch item.
        WIDTH: channels.
        COLUMNS: WIDTH rounded up to a power of two, at least `LEAST`.
        QUANTIZE: store codes and a scale.
        BLOCKS: the codes are NVFP4, with `out` and `out_scale` as in `blocks.store_blocks`.
        INTEGER: codes are INT8; otherwise E4M3.
        LIMIT: the largest code, 127 or 448.
        MIN_AMAX: amax of a row of zeros, so that no scale is zero.
    """
    if BLOCKS:
        store_blocks(y, row, tokens, out, out_scale, block_scale, WIDTH, COLUMNS)
    elif QUANTIZE:
        step = tl.maximum(tl.max(tl.abs(y), 0), MIN_AMAX) / LIMIT
        tl.store(out_scale + row, step)
        tl.store(out + row * WIDTH + columns, quantize_tile(y, step, INTEGER, LIMIT), mask=columns < WIDTH)
    else:
        tl.store(out + row * WIDTH + columns, y.to(out.dtype.element_ty), mask=columns < WIDTH)
