"""Products with INT4 weights, dequantized in registers, the low-rank branch in the same accumulator, with an epilogue.

    product = a @ (int4 * scale) + low @ up                                   a is 16-bit, and so are the weights
    product = a_scale * sum over groups of (a @ int4) * scale + low @ up      a is E4M3, each group has its own sum

Weights have the layout of `quant.formats.int4`: uint8 [in, out / 2], two integers per byte along a row, the first
in the low half; scales [in / 64, out]. The caller computes low = x @ down [batch, tokens, rank], a small product
(SVDQuant, Li et al. 2025). Integers from -8 to 7 are exact in E4M3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autotune import Tile, fastest_tile, generation
from .epilogue import Epilogue, finish_reference, finish_split, plan_product, rows_of, tile_of
from .launch import Launch, capability, jit, power_of_two, require, require_capability, require_fp8, tl
from .operators import register_operator

GROUP = 64
"""Inputs that share a scale."""

MAX_RANK = 256


def unpack(packed: Tensor, scales: Tensor) -> Tensor:
    """fp32 weights [in, out] of packed integers uint8 [in, out / 2] and scales [in / 64, out]."""
    return signed(codes(packed)).float() * scales.float().repeat_interleave(GROUP, 0)


def codes(packed: Tensor, high_first: bool = False) -> Tensor:
    """Codes from 0 to 15, int32 [rows, columns], of uint8 [rows, columns / 2]."""
    halves = (packed >> 4, packed & 15) if high_first else (packed & 15, packed >> 4)
    return torch.stack(halves, dim=-1).flatten(-2).int()


def signed(codes: Tensor) -> Tensor:
    """Integers from -8 to 7 of codes from 0 to 15, two's complement."""
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
    """Reference implementation in PyTorch, into `out`.

    Args:
        out, bias, gate, out_scale: see `epilogue.Epilogue`.
        a: [batch, tokens, in], floating point, or E4M3 codes.
        a_scale: fp32 [batch, tokens], of E4M3 codes.
        packed, scales: uint8 [in, out / 2] and [in / 64, out].
        low, up: [batch, tokens, rank] and [rank, out], or neither.
    """
    epilogue = Epilogue(out, bias, gate, out_scale)
    check_int4_linear(a, a_scale, packed, scales, low, up, epilogue)
    product = a.float() @ unpack(packed, scales)
    if a_scale is not None:
        product = product * a_scale[..., None]
    if low is not None and up is not None:
        product = product + low.float() @ up.float()
    finish_reference(product, epilogue)


@jit()
def unpack_tile(bytes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """int8 [ROWS, COLUMNS] of bytes [ROWS, COLUMNS / 2]: right shifts of a signed byte extend the sign."""
    low = (bytes << 4).to(tl.int8, bitcast=True) >> 4
    high = bytes.to(tl.int8, bitcast=True) >> 4
    return tl.reshape(tl.join(low, high), [ROWS, COLUMNS])


@jit()
def add_branch(  # type: ignore[no-untyped-def]
    acc, low, up, row_at, column_at, RANK: tl.constexpr, RANKS: tl.constexpr, N: tl.constexpr
):
    """Adds a tile of low @ up to `acc`.

    Parameters:
        low, up: the tile's first row of [rows, RANK], and its first column of [RANK, N].
        row_at, column_at: int32, rows and columns from there.
        RANK: of the branch.
        RANKS: RANK rounded up to a power of two, at least 16, the least that tensor cores take.
        N: output channels.
    """
    ranks = tl.arange(0, RANKS)
    low_tile = tl.load(
        low + (row_at[:, None] * RANK + ranks[None, :]), mask=(ranks < RANK)[None, :], other=0.0
    )
    up_tile = tl.load(up + (ranks[:, None] * N + column_at[None, :]), mask=(ranks < RANK)[:, None], other=0.0)
    return tl.dot(low_tile, up_tile, acc)


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
    """One program per tile of one batch item's output; a step of the loop is a group of inputs.

    Parameters:
        a: [batch, tokens, K], contiguous; fp32 or 16-bit, or E4M3 if CODES.
        packed: uint8 [K, N / 2], contiguous.
        scales: [K / GROUP, N], contiguous, fp32 or 16-bit.
        a_scale: fp32 [batch, tokens], contiguous; None unless CODES.
        low: [batch, tokens, RANK], contiguous, fp32 or 16-bit; None if RANK is 0.
        up: [RANK, N], contiguous, in the dtype of low; None if RANK is 0.
        out: output [batch, tokens, N], strides (out_batch, out_token, 1); see `epilogue.finish_tile`.
        bias: [N] or None.
        gate: [batch, N], strides (gate_batch, 1), or None.
        out_scale: fp32 [1] or None.
        tokens: rows of each batch item.
        out_batch, out_token, gate_batch: strides in elements.
        N, K: output and input channels.
        RANK: of the low-rank branch; 0 if there is none.
        RANKS: see `add_branch`.
        BLOCK_M, BLOCK_N: rows and columns of a tile.
        GROUP: inputs that share a scale.
        GROUP_M: tiles below each other that consecutive programs compute, see `epilogue.tile_of`.
        CODES: a is E4M3, and groups are scaled after they are summed; otherwise the weights are scaled first.
        PIECES: in which a tile is stored, see `epilogue.finish_split`.
        EPILOGUE, BIAS, LIMIT, INTEGER: see `epilogue.finish_tile`.

    Grid: (tiles, batch).
    """
    down, across = tile_of(tl.program_id(0), tokens, N, BLOCK_M, BLOCK_N, GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    first = batch * tokens + down * BLOCK_M
    ks = tl.arange(0, GROUP)
    # As in `gemm`: beyond the end the last rows and columns again, a scalar address and 32-bit offsets. Columns are
    # adjacent here, and clamped ones would be read byte by byte, so whole tiles are not clamped.
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
        acc = add_branch(acc, low + first * RANK, up + across * BLOCK_N, row_at, column_at, RANK, RANKS, N)
    finish_split(
        acc, rows, across * BLOCK_N, batch, tokens, N, out, bias, gate, out_scale, out_batch, out_token, gate_batch,
        BLOCK_M, BLOCK_N, PIECES, EPILOGUE, BIAS, LIMIT, INTEGER,
    )  # fmt: skip


TILES: dict[int, tuple[Tile, ...]] = {
    90: ((128, 128, 8, 4), (64, 128, 4, 4), (128, 64, 4, 4)),
    80: ((128, 128, 8, 3), (64, 128, 4, 4), (128, 64, 4, 4)),
}
"""Oldest architecture → rows, columns, warps, stages; with small tiles three programs run at a time."""


def tiles(a: Tensor, arch: int) -> tuple[Tile, ...]:
    """The tiles to measure for an input in the dtype of `a`."""
    if a.dtype == torch.float32:
        return ((64, 64, 8, 1),)
    return TILES[generation(arch)]


def check_scales(packed: Tensor, scales: Tensor) -> None:
    """Raises KontextError unless there is a scale for each group and output channel."""
    shape = [packed.shape[0] // GROUP, 2 * packed.shape[1]]
    require(
        list(scales.shape) == shape and scales.is_contiguous(),
        f"INT4 scales must be {shape}, not {list(scales.shape)}",
    )


def check_int4_linear(
    a: Tensor,
    a_scale: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    epilogue: Epilogue,
) -> None:
    """Raises KontextError for operands that do not go together."""
    rows_of(a)
    depth, channels = packed.shape[0], 2 * packed.shape[1]
    require(
        packed.dtype == torch.uint8 and packed.is_contiguous() and depth == a.shape[2] and depth % GROUP == 0,
        f"INT4 weights must be uint8 [{a.shape[2]}, channels / 2] for an input of {list(a.shape)}, with rows in groups "
        f"of {GROUP}, not {packed.dtype} {list(packed.shape)}",
    )
    check_scales(packed, scales)
    require(a.dtype != torch.int8, "INT4 weights take 16-bit or FP8 activations, not INT8")
    coded = a.dtype == torch.float8_e4m3fn
    require(coded == (a_scale is not None), f"an input in {a.dtype} takes {'' if coded else 'no '}scales")
    check_branch(low, up, rows_of(a), channels)
    epilogue.check(tuple(a.shape[:2]), channels)


def check_branch(low: Tensor | None, up: Tensor | None, rows: int, channels: int) -> None:
    """Raises KontextError unless there is no low-rank branch, or one for a product of [rows, channels]."""
    require((low is None) == (up is None), "a low-rank branch has two factors, low and up")
    if low is not None and up is not None:
        require(
            rows_of(low) == rows and up.is_contiguous(),
            f"low must have the input's {rows} rows, not {rows_of(low)}, and up must be contiguous",
        )
        require(
            tuple(up.shape) == (low.shape[2], channels) and 0 < up.shape[0] <= MAX_RANK,
            f"up must be {[low.shape[2], channels]}, of rank {MAX_RANK} or less, not {list(up.shape)}",
        )
        require(low.dtype == up.dtype, f"low and up must have one dtype, not {low.dtype} and {up.dtype}")


def plan_int4_linear(
    a: Tensor,
    a_scale: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    epilogue: Epilogue,
    arch: int = 0,
    tile: int = 0,
) -> Launch:
    """The launch; operands as in `int4_linear_reference`.

    Args:
        arch: compute capability, 90 for 9.0; 0 for that of the tensors' device.
        tile: index into `tiles`.
    """
    arch = arch or capability(a)
    check_int4_linear(a, a_scale, packed, scales, low, up, epilogue)
    require_capability(arch)
    if a_scale is not None:
        require_fp8(arch, "FP8 products need", instead="16-bit activations")
    m, n, warps, stages = tiles(a, arch)[tile]
    if arch in (100, 103) and a_scale is not None:  # 128 columns spill 320 bytes a thread
        n = 64
    rank = up.shape[0] if up is not None else 0
    return plan_product(
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
        epilogue,
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
    epilogue = Epilogue(out, bias, gate, out_scale)

    def plan(tile: int) -> Launch:
        return plan_int4_linear(a, a_scale, packed, scales, low, up, epilogue, tile=tile)

    sizes = "x".join(map(str, (*a.shape, 2 * packed.shape[1])))
    rank = f" rank {up.shape[0]}" if up is not None else ""
    key = f"int4 {a.dtype} {sizes} {epilogue.name}{rank}"
    fastest_tile(key, tiles(a, capability(a)), plan, epilogue.accumulates_into)


int4_linear_op = register_operator(
    "int4_linear(Tensor(a!) out, Tensor a, Tensor? a_scale, Tensor packed, Tensor scales, Tensor? low, Tensor? up, "
    "Tensor? bias, Tensor? gate, Tensor? out_scale) -> ()",
    launch_int4_linear,
    int4_linear_reference,
    lambda out, a, a_scale, packed, scales, low, up, bias, gate, out_scale: check_int4_linear(
        a, a_scale, packed, scales, low, up, Epilogue(out, bias, gate, out_scale)
    ),
)
