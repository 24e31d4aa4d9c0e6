"""Products with INT4 weights, dequantized in registers, the low-rank branch in the same accumulator, with an epilogue.

    product = a @ (int4 * scale) + low @ up        a 16-bit: weights become 16-bit
    product = a_scale * (codes @ int4 * scale) + low @ up    a E4M3: groups are summed apart, then scaled

Weights are as the bundle has them (`quant.int4`): uint8 [in, out / 2], two a byte along a row, the first in the low
half, scales [in / 64, out]. `low` = x @ down [batch, tokens, rank] is a small product of the caller's (SVDQuant, Li
et al. 2025). Integers from -8 to 7 are exact in E4M3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import epilogue
from .autotune import Tile, fastest_tile, generation
from .epilogue import finish_split, rows_of, tile_of
from .launch import Launch, capability, jit, power_of_two, require, require_capability, tl

GROUP = 64
MAX_RANK = 256


def unpack(packed: Tensor, scales: Tensor) -> Tensor:
    """fp32 weights [in, out]."""
    return signed(codes(packed)).float() * scales.float().repeat_interleave(GROUP, 0)


def codes(packed: Tensor, high_first: bool = False) -> Tensor:
    """Whole numbers from 0 to 15, [rows, columns] of [rows, columns / 2]."""
    halves = (packed >> 4, packed & 15) if high_first else (packed & 15, packed >> 4)
    return torch.stack(halves, dim=-1).flatten(-2).int()


def signed(codes: Tensor) -> Tensor:
    """What four bits mean as a two's complement."""
    return (codes ^ 8) - 8


def int4_linear_reference(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    low: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> None:
    """The plain meaning, into `out`.

    Args:
        out: [batch, tokens, out], any strides; added to where there is a gate.
        a: [batch, tokens, in], floating point, or E4M3 codes with their fp32 scales `a_scale` [batch, tokens].
        packed, scales: uint8 [in, out / 2] and [in / 64, out].
        low, up: [batch, tokens, rank] and [rank, out], or neither.
        bias, gate, out_scale: as in `gemm.scaled_linear`.
    """
    check_int4_linear(out, a, a_scale, packed, scales, low, up, out_scale)
    product = a.float() @ unpack(packed, scales)
    if a_scale is not None:
        product = product * a_scale[..., None]
    if low is not None and up is not None:
        product = product + low.float() @ up.float()
    epilogue.finish_reference(out, product, bias, gate, out_scale)


@jit()
def unpack_tile(bytes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """int8 [ROWS, COLUMNS] of bytes [ROWS, COLUMNS / 2]: shifts of a signed byte carry the sign along."""
    low = (bytes << 4).to(tl.int8, bitcast=True) >> 4
    high = bytes.to(tl.int8, bitcast=True) >> 4
    return tl.reshape(tl.join(low, high), [ROWS, COLUMNS])


@jit(do_not_specialize=["tokens"])
def int4_gemm_kernel(  # type: ignore[no-untyped-def]
    a,
    packed,
    scales,
    a_scale,
    low,
    up,
    out,
    bias,
    gate,
    out_scale,
    tokens,
    out_batch,
    out_token,
    gate_batch,
    N: tl.constexpr,
    K: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_M: tl.constexpr,
    CODES: tl.constexpr,
    PIECES: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BIAS: tl.constexpr,
    LIMIT: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """One program a tile of one picture's output; a step of the loop is a group of 64 input rows."""
    down, across = tile_of(tl.program_id(0), tokens, N, BLOCK_M, BLOCK_N, GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    first = batch * tokens + down * BLOCK_M
    ks = tl.arange(0, GROUP)
    # As in `gemm`: the last rows and columns again beyond the end, a scalar address and offsets of 32 bits. Columns lie
    # together here, and clamped ones are read byte by byte, so whole tiles are left unclamped.
    a_start = a + first * K
    w_start = packed + across * (BLOCK_N // 2)
    s_start = scales + across * BLOCK_N
    row_at = tl.minimum(tl.arange(0, BLOCK_M), tokens - 1 - down * BLOCK_M)
    column_at = tl.arange(0, BLOCK_N)
    half_at = tl.arange(0, BLOCK_N // 2)
    if N % BLOCK_N != 0:
        column_at = tl.minimum(column_at, N - 1 - across * BLOCK_N)
        half_at = tl.minimum(half_at, N // 2 - 1 - across * (BLOCK_N // 2))
    a_at = row_at[:, None] * K + ks[None, :]
    w_at = ks[:, None] * (N // 2) + half_at[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(K // GROUP):
        a_tile = tl.load(a_start + group * GROUP + a_at)
        bytes = tl.load(w_start + group * (GROUP * (N // 2)) + w_at)
        integers = unpack_tile(bytes, GROUP, BLOCK_N).to(tl.float32)
        by = tl.load(s_start + group * N + column_at).to(tl.float32)
        if CODES:
            acc += tl.dot(a_tile, integers.to(a_tile.dtype)) * by[None, :]
        else:
            acc = tl.dot(a_tile, (integers * by[None, :]).to(a_tile.dtype), acc)
    rows = down * BLOCK_M + tl.arange(0, BLOCK_M)
    if CODES:
        acc = acc * tl.load(a_scale + batch * tokens + rows, mask=rows < tokens, other=0.0)[:, None]
    if RANK > 0:
        ranks = tl.arange(0, RANKS)
        low_at = low + first * RANK + (row_at[:, None] * RANK + ranks[None, :])
        up_at = up + across * BLOCK_N + (ranks[:, None] * N + column_at[None, :])
        low_tile = tl.load(low_at, mask=(ranks < RANK)[None, :], other=0.0)
        up_tile = tl.load(up_at, mask=(ranks < RANK)[:, None], other=0.0)
        acc = tl.dot(low_tile, up_tile, acc)
    finish_split(
        acc, rows, across * BLOCK_N, batch, tokens, N, out, bias, gate, out_scale, out_batch, out_token, gate_batch,
        BLOCK_M, BLOCK_N, PIECES, EPILOGUE, BIAS, LIMIT, INTEGER,
    )  # fmt: skip


TILES: dict[int, tuple[Tile, ...]] = {
    90: ((128, 128, 8, 4), (64, 128, 4, 4), (128, 64, 4, 4)),
    80: ((128, 128, 8, 3), (64, 128, 4, 4), (128, 64, 4, 4)),
}
"""Oldest architecture → rows, columns, warps, stages; the small ones leave room for three programs at a time."""


def tiles(a: Tensor, arch: int) -> tuple[Tile, ...]:
    if a.dtype == torch.float32:
        return ((64, 64, 8, 1),)
    return TILES[generation(arch)]


def check_scales(packed: Tensor, scales: Tensor) -> None:
    """Raises KontextError unless INT4 weights have a scale for each group and output channel."""
    shape = [packed.shape[0] // GROUP, 2 * packed.shape[1]]
    require(
        list(scales.shape) == shape and scales.is_contiguous(),
        f"INT4 scales must be {shape}, not {list(scales.shape)}",
    )


def check_int4_linear(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    out_scale: Tensor | None,
) -> None:
    """Raises KontextError for operands that do not go together."""
    rows_of(a)
    depth, channels = packed.shape[0], 2 * packed.shape[1]
    require(
        packed.dtype == torch.uint8 and packed.is_contiguous() and depth == a.shape[2] and depth % GROUP == 0,
        f"INT4 weights of {list(packed.shape)} for an input of {list(a.shape)}; rows go in groups of {GROUP}",
    )
    check_scales(packed, scales)
    require(a.dtype != torch.int8, "INT4 weights go with 16-bit or FP8 activations, not with INT8")
    require(
        (a.dtype == torch.float8_e4m3fn) == (a_scale is not None), f"an input in {a.dtype} and its scales"
    )
    require((low is None) == (up is None), "a low-rank branch has two factors")
    if low is not None and up is not None:
        require(rows_of(low) == rows_of(a) and up.is_contiguous(), "a low-rank factor for every row")
        require(
            tuple(up.shape) == (low.shape[2], channels) and 0 < up.shape[0] <= MAX_RANK,
            f"a low-rank factor of {list(up.shape)} for {channels} channels and {low.shape[2]} ranks up to {MAX_RANK}",
        )
        require(low.dtype == up.dtype, "the low-rank factors must be in one format")
    epilogue.check_output(out, tuple(a.shape[:2]), channels, out_scale)


def plan_int4_linear(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    low: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
    arch: int = 0,
    tile: int = 0,
) -> Launch:
    arch = arch or capability(a)
    check_int4_linear(out, a, a_scale, packed, scales, low, up, out_scale)
    require_capability(arch, "" if a_scale is None else "FP8 products need", "16-bit activations")
    m, n, warps, stages = tiles(a, arch)[tile]
    if arch in (100, 103) and a_scale is not None:  # 128 columns spill 320 bytes a thread
        n = 64
    rank = up.shape[0] if up is not None else 0
    return epilogue.plan_product(
        int4_gemm_kernel,
        (m, n, warps, stages),
        {"a": a, "packed": packed, "scales": scales, "a_scale": a_scale, "low": low, "up": up},
        {
            "K": a.shape[2],
            "RANK": rank,
            "RANKS": max(power_of_two(rank), 16),
            "GROUP": GROUP,
            "CODES": a_scale is not None,
        },
        (out, bias, gate, out_scale),
    )


def launch_int4_linear(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    low: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> None:
    def start(tile: int) -> None:
        plan_int4_linear(out, a, a_scale, packed, scales, low, up, bias, gate, out_scale, tile=tile).run()

    if out.numel():
        sizes = "x".join(map(str, (*a.shape, 2 * packed.shape[1])))
        rank = f" rank {up.shape[0]}" if up is not None else ""
        key = f"int4 {a.dtype} {sizes} {epilogue.ending(gate, out_scale)}{rank}"
        fastest_tile(key, tiles(a, capability(a)), start, None if gate is None else out)


int4_linear_op = torch.library.custom_op(
    "kontext::int4_linear",
    launch_int4_linear,
    mutates_args=("out",),
    device_types="cuda",
    schema="(Tensor(a!) out, Tensor a, Tensor? a_scale, Tensor packed, Tensor scales, Tensor? low, Tensor? up, "
    "Tensor? bias, Tensor? gate, Tensor? out_scale) -> ()",
)
int4_linear_op.register_kernel("cpu")(int4_linear_reference)
int4_linear_op.register_fake(
    lambda out, a, a_scale, packed, scales, low, up, bias, gate, out_scale: check_int4_linear(
        out, a, a_scale, packed, scales, low, up, out_scale
    )
)
