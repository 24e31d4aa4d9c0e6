"""INT4 weights to 16 bits in one pass, for products of so many rows that cuBLAS with unpacked weights is faster.

A pass over a weight of n bytes costs 5n of traffic, a product of 8704 rows hundreds of times as long as that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .int4 import GROUP, unpack, unpack_tile
from .launch import Launch, cdiv, jit, require, tl

COLUMNS = 128


def int4_dequantize(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The plain meaning: packed uint8 [in, out / 2] and scales [in / 64, out] → [in, out]."""
    check(packed, scales)
    return unpack(packed, scales).to(dtype)


@jit()
def group_tile(  # type: ignore[no-untyped-def]
    packed, scales, N: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr
):
    """This program's group of rows and block of columns: their numbers, the integers as fp32, the columns' scales."""
    group = tl.program_id(0)
    rows = (group * GROUP + tl.arange(0, GROUP)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    halves = tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    bytes = tl.load(
        packed + rows[:, None] * (N // 2) + halves[None, :], mask=(halves < N // 2)[None, :], other=0
    )
    by = tl.load(scales + group * N + columns, mask=columns < N, other=0.0).to(tl.float32)
    return rows, columns, unpack_tile(bytes, GROUP, COLUMNS).to(tl.float32), by


@jit()
def int4_dequantize_kernel(  # type: ignore[no-untyped-def]
    packed,
    scales,
    out,
    N: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program a group of 64 rows and a block of columns."""
    rows, columns, integers, by = group_tile(packed, scales, N, GROUP, COLUMNS)
    weights = integers * by[None, :]
    tl.store(
        out + rows[:, None] * N + columns[None, :],
        weights.to(out.dtype.element_ty),
        mask=(columns < N)[None, :],
    )


def check(packed: Tensor, scales: Tensor) -> None:
    depth, channels = packed.shape[0], 2 * packed.shape[1]
    require(packed.is_contiguous() and depth % GROUP == 0, f"INT4 weights of {list(packed.shape)}")
    require(
        tuple(scales.shape) == (depth // GROUP, channels) and scales.is_contiguous(),
        f"INT4 scales must be {[depth // GROUP, channels]}, not {list(scales.shape)}",
    )


def plan(packed: Tensor, scales: Tensor, out: Tensor) -> Launch:
    check(packed, scales)
    depth, channels = out.shape
    return Launch(
        int4_dequantize_kernel,
        (depth // GROUP, cdiv(channels, COLUMNS), 1),
        {"packed": packed, "scales": scales, "out": out},
        {"N": channels, "GROUP": GROUP, "COLUMNS": COLUMNS},
        warps=4,
        stages=1,
    )


def launch_int4_dequantize(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty((packed.shape[0], 2 * packed.shape[1]), dtype=dtype, device=packed.device)
    plan(packed, scales, out).run()
    return out


int4_dequantize_op = torch.library.custom_op(
    "kontext::int4_dequantize",
    launch_int4_dequantize,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor packed, Tensor scales, ScalarType dtype) -> Tensor",
)
int4_dequantize_op.register_kernel("cpu")(int4_dequantize)


@int4_dequantize_op.register_fake
def _(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    check(packed, scales)
    return packed.new_empty((packed.shape[0], 2 * packed.shape[1]), dtype=dtype)
