"""INT4 weights to E4M3 in one pass, so that products with FP8 inputs run at the FP8 tensor cores' full rate.

    weight[k, n] = int4[k, n] * scale[k / 64, n]  →  codes[n, k] * column_scale[n]

`int4` multiplies integers exactly, but must scale each group's sum by itself, in registers that the sums need. Rounded
to E4M3 with one scale a column, the weights lose another 2^-4 of their size at most, which beside INT4's own error is
0.3 dB of normal weights, and groups are gone. The pass moves 2.5 bytes a weight; a product of 8704 rows computes 17 408
times with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .int4 import GROUP, check_scales, unpack, unpack_tile
from .launch import Launch, capability, cdiv, jit, require, require_capability, tl
from .numeric import LIMITS, encode

COLUMNS = 128
"""Output channels a program turns."""

LARGEST = 8
"""Of the integers' sizes."""


def column_scales(scales: Tensor) -> Tensor:
    """The scales of `int4_to_fp8`, fp32 [out], for those of the groups [in / 64, out]."""
    return (scales.float().abs().amax(0) * (LARGEST / LIMITS["fp8"])).clamp(
        min=torch.finfo(torch.float32).tiny
    )


def int4_to_fp8_reference(packed: Tensor, scales: Tensor, by_column: Tensor) -> Tensor:
    """The plain meaning: packed uint8 [in, out / 2] and scales [in / 64, out] → E4M3 codes [out, in] in units of
    `by_column` fp32 [out]."""
    check_int4_to_fp8(packed, scales, by_column)
    return encode(unpack(packed, scales) / by_column, "fp8").t().contiguous()


@jit()
def int4_to_fp8_kernel(  # type: ignore[no-untyped-def]
    packed,
    scales,
    by_column,
    out,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program a group of 64 rows and a block of columns, which it turns on the way."""
    group = tl.program_id(0)
    rows = (group * GROUP + tl.arange(0, GROUP)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    halves = tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    bytes = tl.load(
        packed + rows[:, None] * (N // 2) + halves[None, :], mask=(halves < N // 2)[None, :], other=0
    )
    step = tl.load(scales + group * N + columns, mask=columns < N, other=0.0).to(tl.float32)
    integers = unpack_tile(bytes, GROUP, COLUMNS).to(tl.float32)
    step = step / tl.load(by_column + columns, mask=columns < N, other=1.0)
    codes = tl.trans((integers * step[None, :]).to(tl.float8e4nv))
    tl.store(out + columns.to(tl.int64)[:, None] * K + rows[None, :], codes, mask=(columns < N)[:, None])


def check_int4_to_fp8(packed: Tensor, scales: Tensor, by_column: Tensor) -> None:
    require(packed.is_contiguous() and packed.shape[0] % GROUP == 0, f"INT4 weights of {list(packed.shape)}")
    check_scales(packed, scales)
    require(
        tuple(by_column.shape) == (scales.shape[1],) and by_column.dtype == torch.float32,
        f"column scales must be fp32 {[scales.shape[1]]}, not {by_column.dtype} {list(by_column.shape)}",
    )


def plan_int4_to_fp8(packed: Tensor, scales: Tensor, by_column: Tensor, out: Tensor, arch: int = 0) -> Launch:
    check_int4_to_fp8(packed, scales, by_column)
    require_capability(arch or capability(packed), "FP8 products need", "16-bit activations")
    channels, depth = out.shape
    return Launch(
        int4_to_fp8_kernel,
        (depth // GROUP, cdiv(channels, COLUMNS), 1),
        {"packed": packed, "scales": scales, "by_column": by_column, "out": out},
        {"N": channels, "K": depth, "GROUP": GROUP, "COLUMNS": COLUMNS},
        warps=4,
        stages=1,
    )


def launch_int4_to_fp8(packed: Tensor, scales: Tensor, by_column: Tensor) -> Tensor:
    out = torch.empty((2 * packed.shape[1], packed.shape[0]), dtype=torch.float8_e4m3fn, device=packed.device)
    plan_int4_to_fp8(packed, scales, by_column, out).run()
    return out


int4_to_fp8_op = torch.library.custom_op(
    "kontext::int4_to_fp8",
    launch_int4_to_fp8,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor packed, Tensor scales, Tensor by_column) -> Tensor",
)
int4_to_fp8_op.register_kernel("cpu")(int4_to_fp8_reference)


@int4_to_fp8_op.register_fake
def _(packed: Tensor, scales: Tensor, by_column: Tensor) -> Tensor:
    check_int4_to_fp8(packed, scales, by_column)
    return packed.new_empty((2 * packed.shape[1], packed.shape[0]), dtype=torch.float8_e4m3fn)
