"""Weights of 4 or 8 bits to 16 in one pass, for products of so many rows that cuBLAS with unpacked weights is faster.

    FP8, INT8      value * scale                   a scale for each output channel
    INT4           integer * scale                 a two's complement
    UINT4          (code - zero) * scale
    NF4, NVFP4     table[code] * scale             NVFP4's scale for the whole weight is in its table

A pass over a weight of n bytes costs 3n to 5n of traffic, a product of 8704 rows hundreds of times as long as that.
bitsandbytes' layout (NF4) has a weight as [out, in] and the first of two codes in the high half of a byte; the others
have [in, out] and the low half. Sizes are arguments: one compiled kernel serves a format's weights of every network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .int4 import codes, signed
from .launch import Launch, cdiv, jit, require, tl

CODES = 16
TILE = 8192
"""Weights a program unpacks."""

SCALES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def dequantize_4bit(
    packed: Tensor,
    table: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    transposed: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The plain meaning → [in, out] in `dtype`.

    Args:
        packed: uint8 [in, out / 2], or [out, in / 2] where `transposed`.
        table: fp32 [16], what each code stands for; None for integers.
        scales: [in / group, out], or [out, in / group] where `transposed`; a group has 16, 32 or 64 inputs.
        zeros: packed like the weights, uint8 [in / group, out / 2], of UINT4; None for signed integers.
    """
    group = check(packed, table, scales, zeros, transposed)
    axis = 1 if transposed else 0
    numbers = codes(packed, transposed)
    if table is not None:
        values = table[numbers]
    elif zeros is not None:
        values = (numbers - codes(zeros, transposed).repeat_interleave(group, axis)).float()
    else:
        values = signed(numbers).float()
    weight = (values * scales.float().repeat_interleave(group, axis)).to(dtype)
    return weight.t() if transposed else weight


@jit()
def code_tile(bytes, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HIGH_FIRST: tl.constexpr):  # type: ignore[no-untyped-def]
    """int32 [ROWS, COLUMNS] of bytes [ROWS, COLUMNS / 2]."""
    low = (bytes & 15).to(tl.int32)
    high = (bytes >> 4).to(tl.int32)
    if HIGH_FIRST:
        pairs = tl.join(high, low)
    else:
        pairs = tl.join(low, high)
    return tl.reshape(pairs, [ROWS, COLUMNS])


@jit()
def wide(value):  # type: ignore[no-untyped-def]
    """fp32 of numbers; those in E4M3 come as bytes, since GPUs before Ada do not have the type."""
    if value.dtype == tl.uint8:  # the bits of fp16, but for an exponent that is 8 too small
        bits = value.to(tl.int16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        number = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), number)
    return value.to(tl.float32)


@jit()
def dequantize_kernel(  # type: ignore[no-untyped-def]
    packed,
    table,
    scales,
    zeros,
    out,
    height,
    half_width,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    TABLE: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """One program a tile of [height, 2 * half_width] weights as they lie; a tile is one group high (wide)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    halves = tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    across = rows.to(tl.int64)[:, None]
    width = 2 * half_width
    inside = (rows < height)[:, None] & (halves < half_width)[None, :]
    bytes = tl.load(packed + across * half_width + halves[None, :], mask=inside, other=0)
    codes = code_tile(bytes, ROWS, COLUMNS, TRANSPOSED)
    if TABLE:
        weights = tl.load(table + codes)
    elif ZEROS:
        zero_at = zeros + tl.program_id(0).to(tl.int64) * half_width + halves[None, :]
        zero_bytes = tl.load(zero_at, mask=(halves < half_width)[None, :], other=0)
        weights = (codes - code_tile(zero_bytes, 1, COLUMNS, TRANSPOSED)).to(tl.float32)
    else:
        weights = ((codes ^ 8) - 8).to(tl.float32)
    if TRANSPOSED:
        at = rows.to(tl.int64) * (width // GROUP) + tl.program_id(1)
        weights *= wide(tl.load(scales + at, mask=rows < height, other=0))[:, None]
    else:
        group = tl.program_id(0).to(tl.int64)
        weights *= wide(tl.load(scales + group * width + columns, mask=columns < width, other=0))[None, :]
    tl.store(
        out + across * width + columns[None, :],
        weights.to(out.dtype.element_ty),
        mask=(rows < height)[:, None] & (columns < width)[None, :],
    )


def check(
    packed: Tensor, table: Tensor | None, scales: Tensor, zeros: Tensor | None, transposed: bool
) -> int:
    """Inputs that share a scale. Raises KontextError for operands that do not go together."""
    require(
        packed.dtype == torch.uint8 and packed.ndim == 2 and packed.is_contiguous() and packed.numel() > 0,
        f"4-bit codes must be whole rows of bytes, not {packed.dtype} {list(packed.shape)}",
    )
    require(
        table is None
        or (
            table.dtype == torch.float32 and tuple(table.shape) == (CODES,) and table.device == packed.device
        ),
        "a table is sixteen fp32 values where the codes are",
    )
    height, width = packed.shape[0], 2 * packed.shape[1]
    depth, channels = (width, height) if transposed else (height, width)
    groups = scales.shape[1 if transposed else 0] if scales.ndim == 2 else 0
    group = depth // max(groups, 1)
    shape = (channels, groups) if transposed else (groups, channels)
    require(
        group in (16, 32, 64)
        and group * groups == depth
        and tuple(scales.shape) == shape
        and scales.dtype in SCALES
        and scales.is_contiguous(),
        f"scales {list(scales.shape)} in {scales.dtype} for {depth} inputs and {channels} channels of 4 bits",
    )
    require(
        zeros is None
        or (
            (table is None and not transposed and zeros.dtype == torch.uint8 and zeros.is_contiguous())
            and tuple(zeros.shape) == (groups, packed.shape[1])
        ),
        "a zero point of 4 bits for every scale, of integers [in, out]",
    )
    return group


def plan(
    packed: Tensor, table: Tensor | None, scales: Tensor, zeros: Tensor | None, transposed: bool, out: Tensor
) -> Launch:
    """`out` as the codes lie: [height, width]."""
    group = check(packed, table, scales, zeros, transposed)
    height, half_width = packed.shape
    if scales.dtype == torch.float8_e4m3fn:
        scales = scales.view(torch.uint8)
    rows, columns = (TILE // group, group) if transposed else (group, TILE // group)
    return Launch(
        dequantize_kernel,
        (cdiv(height, rows), cdiv(2 * half_width, columns), 1),
        {
            "packed": packed,
            "table": table,
            "scales": scales,
            "zeros": zeros,
            "out": out,
            "height": height,
            "half_width": half_width,
        },
        {
            "GROUP": group,
            "ROWS": rows,
            "COLUMNS": columns,
            "TRANSPOSED": transposed,
            "TABLE": table is not None,
            "ZEROS": zeros is not None,
        },
        warps=8,
        stages=1,
    )


def launch_dequantize_4bit(
    packed: Tensor,
    table: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    transposed: bool,
    dtype: torch.dtype,
) -> Tensor:
    out = as_packed(packed, dtype)
    plan(packed, table, scales, zeros, transposed, out).run()
    return out.t() if transposed else out


def as_packed(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for the weights as their codes lie."""
    return packed.new_empty((packed.shape[0], 2 * packed.shape[1]), dtype=dtype)


dequantize_4bit_op = torch.library.custom_op(
    "kontext::dequantize_4bit",
    launch_dequantize_4bit,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor packed, Tensor? table, Tensor scales, Tensor? zeros, bool transposed, ScalarType dtype) -> Tensor",
)
dequantize_4bit_op.register_kernel("cpu")(dequantize_4bit)


@dequantize_4bit_op.register_fake
def _(
    packed: Tensor,
    table: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    transposed: bool,
    dtype: torch.dtype,
) -> Tensor:
    check(packed, table, scales, zeros, transposed)
    out = as_packed(packed, dtype)
    return out.t() if transposed else out


def dequantize_8bit(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The plain meaning: E4M3 or INT8 [in, out] with scales [out] → [in, out] in `dtype`."""
    check_8bit(weight, scale)
    return (weight.float() * scale.float()).to(dtype)


@jit()
def dequantize_8bit_kernel(  # type: ignore[no-untyped-def]
    weight, scale, out, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program a tile."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    by = tl.load(scale + columns, mask=columns < width, other=0.0).to(tl.float32)
    values = wide(tl.load(weight + at, mask=inside, other=0)) * by[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


def check_8bit(weight: Tensor, scale: Tensor) -> None:
    """Raises KontextError for operands that do not go together."""
    require(
        weight.dtype in (torch.float8_e4m3fn, torch.int8) and weight.ndim == 2 and weight.is_contiguous(),
        f"weights of 8 bits are E4M3 or INT8 [in, out], not {weight.dtype} {list(weight.shape)}",
    )
    require(
        tuple(scale.shape) == (weight.shape[1],) and scale.is_contiguous(),
        f"a scale for each of {weight.shape[1]} output channels, not {list(scale.shape)}",
    )


def plan_8bit(weight: Tensor, scale: Tensor, out: Tensor) -> Launch:
    check_8bit(weight, scale)
    height, width = weight.shape
    rows, columns = 16, TILE // 16
    return Launch(
        dequantize_8bit_kernel,
        (cdiv(height, rows), cdiv(width, columns), 1),
        {
            "weight": weight.view(torch.uint8) if weight.dtype == torch.float8_e4m3fn else weight,
            "scale": scale,
            "out": out,
            "height": height,
            "width": width,
        },
        {"ROWS": rows, "COLUMNS": columns},
        warps=8,
        stages=1,
    )


def launch_dequantize_8bit(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    plan_8bit(weight, scale, out).run()
    return out


dequantize_8bit_op = torch.library.custom_op(
    "kontext::dequantize_8bit",
    launch_dequantize_8bit,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor weight, Tensor scale, ScalarType dtype) -> Tensor",
)
dequantize_8bit_op.register_kernel("cpu")(dequantize_8bit)


@dequantize_8bit_op.register_fake
def _(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    check_8bit(weight, scale)
    return torch.empty_like(weight, dtype=dtype)
