"""Unpacks 4-bit weights to 16 bits in one pass, for products of many rows, where cuBLAS is then faster.

    INT4           integer * scale                 integers in two's complement
    UINT4          (code - zero) * scale
    NF4, NVFP4     table[code] * scale             NVFP4's table includes the scale of the whole weight

A pass over a packed weight of n bytes moves 5n bytes; a product of 8704 rows takes hundreds of times as long.
NF4 has bitsandbytes' layout: a weight is [out, in], and the high half of a byte holds the first of its two codes. The
others are [in, out], and the low half holds the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .int4 import codes, signed
from .launch import Launch, cdiv, jit, require, tl
from .numeric import float_tile
from .operators import register_operator

TABLE_SIZE = 16
TILE = 8192
"""Weights that a program unpacks."""

SCALES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def dequantize_4bit_reference(
    packed: Tensor,
    table: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    transposed: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Reference implementation in PyTorch.

    Args:
        packed: uint8 [in, out / 2], or [out, in / 2] if `transposed`.
        table: fp32 [16], the value of each code; None for integers.
        scales: [in / group, out], or [out, in / group] if `transposed`; a group has 16, 32 or 64 inputs.
        zeros: UINT4's zero points, uint8 [in / group, out / 2], packed like the weights; None for signed integers.
        transposed: the weight is [out, in], and the first of two codes is in the high half of a byte.
        dtype: of the output.

    Returns:
        [in, out] in `dtype`.
    """
    group = check_dequantize_4bit(packed, table, scales, zeros, transposed)
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
    """Codes int32 [ROWS, COLUMNS] of bytes [ROWS, COLUMNS / 2]."""
    low = (bytes & 15).to(tl.int32)
    high = (bytes >> 4).to(tl.int32)
    if HIGH_FIRST:
        pairs = tl.join(high, low)
    else:
        pairs = tl.join(low, high)
    return tl.reshape(pairs, [ROWS, COLUMNS])


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
    """One program per tile of the stored weight; a tile is one group high, or one group wide if TRANSPOSED.

    Parameters:
        packed: uint8 [height, half_width], contiguous.
        table: fp32 [16], the value of each code; None unless TABLE.
        scales: [height / GROUP, 2 * half_width], or [height, 2 * half_width / GROUP] if TRANSPOSED; contiguous, fp32,
            16-bit, or the bytes of E4M3 as uint8.
        zeros: uint8 [height / GROUP, half_width], contiguous; None unless ZEROS.
        out: output [height, 2 * half_width], contiguous, fp32 or 16-bit.
        height, half_width: arguments, so that one compiled kernel serves weights of all sizes.
        GROUP: inputs that share a scale, along the rows, or along the columns if TRANSPOSED.
        ROWS, COLUMNS: size of a tile; ROWS == GROUP, or COLUMNS == GROUP if TRANSPOSED.
        TRANSPOSED: the weight is [out, in], and the high half of a byte holds the first of its codes.
        TABLE: codes are looked up in `table`.
        ZEROS: codes are unsigned and have zero points; with neither TABLE nor ZEROS they are two's complement.

    Grid: (ceil(height / ROWS), ceil(2 * half_width / COLUMNS)).
    """
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
        weights *= float_tile(tl.load(scales + at, mask=rows < height, other=0))[:, None]
    else:
        group = tl.program_id(0).to(tl.int64)
        weights *= float_tile(tl.load(scales + group * width + columns, mask=columns < width, other=0))[
            None, :
        ]
    tl.store(
        out + across * width + columns[None, :],
        weights.to(out.dtype.element_ty),
        mask=(rows < height)[:, None] & (columns < width)[None, :],
    )


def check_dequantize_4bit(
    packed: Tensor, table: Tensor | None, scales: Tensor, zeros: Tensor | None, transposed: bool
) -> int:
    """Returns the group size, inputs that share a scale.

    Raises:
        KontextError: the operands do not go together.
    """
    require(
        packed.dtype == torch.uint8 and packed.ndim == 2 and packed.is_contiguous() and packed.numel() > 0,
        f"4-bit codes must be contiguous uint8 [rows, bytes], not {packed.dtype} {list(packed.shape)}",
    )
    require(
        table is None
        or (
            table.dtype == torch.float32
            and tuple(table.shape) == (TABLE_SIZE,)
            and table.device == packed.device
        ),
        "a table must hold sixteen fp32 values on the device of the codes",
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
        f"scales {list(scales.shape)} in {scales.dtype} do not fit 4-bit weights of {depth} inputs and {channels} "
        "channels",
    )
    require(
        zeros is None
        or (
            (table is None and not transposed and zeros.dtype == torch.uint8 and zeros.is_contiguous())
            and tuple(zeros.shape) == (groups, packed.shape[1])
        ),
        f"zero points must be uint8 {[groups, packed.shape[1]]} for integer weights [in, out]",
    )
    return group


def plan_dequantize_4bit(
    packed: Tensor, table: Tensor | None, scales: Tensor, zeros: Tensor | None, transposed: bool, out: Tensor
) -> Launch:
    """The launch; operands as in `dequantize_4bit_reference`, but `out` is laid out like the codes: [height, width]."""
    group = check_dequantize_4bit(packed, table, scales, zeros, transposed)
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


def empty_weight(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Empty [height, width] of packed codes [height, width / 2]."""
    return packed.new_empty((packed.shape[0], 2 * packed.shape[1]), dtype=dtype)


def launch_dequantize_4bit(
    packed: Tensor,
    table: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    transposed: bool,
    dtype: torch.dtype,
) -> Tensor:
    out = empty_weight(packed, dtype)
    plan_dequantize_4bit(packed, table, scales, zeros, transposed, out).run()
    return out.t() if transposed else out


def fake_dequantize_4bit(
    packed: Tensor,
    table: Tensor | None,
    scales: Tensor,
    zeros: Tensor | None,
    transposed: bool,
    dtype: torch.dtype,
) -> Tensor:
    check_dequantize_4bit(packed, table, scales, zeros, transposed)
    out = empty_weight(packed, dtype)
    return out.t() if transposed else out


dequantize_4bit_op = register_operator(
    "dequantize_4bit(Tensor packed, Tensor? table, Tensor scales, Tensor? zeros, bool transposed, ScalarType dtype) -> "
    "Tensor",
    launch_dequantize_4bit,
    dequantize_4bit_reference,
    fake_dequantize_4bit,
)
