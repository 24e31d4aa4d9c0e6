"""Converts INT4 weights to E4M3 in one pass, so that products with FP8 inputs run at the FP8 tensor cores' full rate.

    weight[k, n] = int4[k, n] * scale[k / 64, n]  →  codes[n, k] * column_scale[n]

`int4` multiplies integers exactly, but must scale each group's sum separately, in registers that the sums need. Rounded
to E4M3 with one scale per column, there are no groups, and the weights lose at most another 2^-4 of their size: 0.3 dB
beside INT4's own error, for normal weights. The pass moves 2.5 bytes per weight; a product of 8704 rows does 17 408
operations with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .int4 import GROUP, check_scales, unpack, unpack_tile
from .launch import Launch, capability, cdiv, jit, require, require_fp8, tl
from .numeric import LIMITS, encode
from .operators import register_operator

COLUMNS = 128
"""Output channels that a program transposes."""

LARGEST = 8
"""The largest absolute value of the integers."""


def column_scales(scales: Tensor) -> Tensor:
    """Column scales fp32 [out] for the group scales [in / 64, out]: no code exceeds E4M3's largest number."""
    return (scales.float().abs().amax(0) * (LARGEST / LIMITS["fp8"])).clamp(
        min=torch.finfo(torch.float32).tiny
    )


def int4_to_fp8_reference(packed: Tensor, scales: Tensor, by_column: Tensor) -> Tensor:
    """Reference implementation in PyTorch.

    Args:
        packed, scales: INT4 weights as in the bundle, uint8 [in, out / 2] and [in / 64, out].
        by_column: fp32 [out], see `column_scales`.

    Returns:
        E4M3 codes [out, in]; the weights are codes * by_column.
    """
    check_int4_to_fp8(packed, scales, by_column)
    # In the kernel's order: integers times a ratio of scales often lie between two codes.
    return encode(unpack(packed, scales.float() / by_column), "fp8").t().contiguous()


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
    """One program per group of inputs and block of output channels, which it transposes.

    Parameters:
        packed: uint8 [K, N / 2], contiguous.
        scales: [K / GROUP, N], contiguous, fp32 or 16-bit.
        by_column: fp32 [N].
        out: output E4M3 [N, K], contiguous.
        N, K: output and input channels.
        GROUP: inputs that share a scale.
        COLUMNS: output channels of a program.

    Grid: (K / GROUP, ceil(N / COLUMNS)).
    """
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
    """Raises KontextError for operands that do not go together."""
    require(
        packed.is_contiguous() and packed.shape[0] % GROUP == 0,
        f"INT4 weights must be contiguous, with rows in groups of {GROUP}, not {list(packed.shape)}",
    )
    check_scales(packed, scales)
    require(
        tuple(by_column.shape) == (scales.shape[1],) and by_column.dtype == torch.float32,
        f"column scales must be float32 {[scales.shape[1]]}, not {by_column.dtype} {list(by_column.shape)}",
    )


def plan_int4_to_fp8(packed: Tensor, scales: Tensor, by_column: Tensor, out: Tensor, arch: int = 0) -> Launch:
    """The launch; operands as in `int4_to_fp8_reference`, its result is written into `out` [out, in]."""
    check_int4_to_fp8(packed, scales, by_column)
    require_fp8(arch or capability(packed), "FP8 products need", instead="16-bit activations")
    channels, depth = out.shape
    return Launch(
        int4_to_fp8_kernel,
        (depth // GROUP, cdiv(channels, COLUMNS), 1),
        {"packed": packed, "scales": scales, "by_column": by_column, "out": out},
        {"N": channels, "K": depth, "GROUP": GROUP, "COLUMNS": COLUMNS},
        warps=4,
        stages=1,
    )


def empty_codes(packed: Tensor) -> Tensor:
    """Empty E4M3 [out, in] for packed [in, out / 2]."""
    return packed.new_empty((2 * packed.shape[1], packed.shape[0]), dtype=torch.float8_e4m3fn)


def launch_int4_to_fp8(packed: Tensor, scales: Tensor, by_column: Tensor) -> Tensor:
    out = empty_codes(packed)
    plan_int4_to_fp8(packed, scales, by_column, out).run()
    return out


def fake_int4_to_fp8(packed: Tensor, scales: Tensor, by_column: Tensor) -> Tensor:
    check_int4_to_fp8(packed, scales, by_column)
    return empty_codes(packed)


int4_to_fp8_op = register_operator(
    "int4_to_fp8(Tensor packed, Tensor scales, Tensor by_column) -> Tensor",
    launch_int4_to_fp8,
    int4_to_fp8_reference,
    fake_int4_to_fp8,
)
