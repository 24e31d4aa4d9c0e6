"""Products of NVFP4 inputs and NVFP4 weights, the low-rank branch in the same accumulator, with an epilogue.

    product[m, n] = scale * sum_k a[m, k] a_scale[m, k / 16] weight[n, k] w_scale[n, k / 16] + low @ up

Blackwell's tensor cores multiply E2M1 codes with the E4M3 scales of their blocks (tcgen05.mma and mma.sync, kind
mxf4nvf4, with fp32 sums). `scale` is the inputs' times the weight's. Both operands are packed along k and their scales
tiled as in `blocks`; `by_output` brings a bundle's weights into that form when they are loaded. The caller computes
low = x @ down from the inputs before they are rounded (SVDQuant, Li et al. 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compute_capability import dotted
from .autotune import Tile, fastest_tile
from .blocks import BLOCK, TILE_BLOCKS, TILE_BYTES, TILE_ROWS, block_values, tile_scales
from .epilogue import Epilogue, finish_reference, finish_split, plan_product, rows_of, tile_of
from .int4 import add_branch, check_branch
from .launch import Launch, capability, cdiv, jit, power_of_two, require, tl
from .operators import register_operator

NVFP4_CAPABILITY = 100
"""The first compute capability whose tensor cores take NVFP4, 10.0 (Blackwell)."""


def by_output(packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """A bundle's weight as the product takes it.

    Args:
        packed: uint8 [in, out / 2], two values a byte along a row, the first in the low half.
        scales: E4M3 [in / 16, out].

    Returns:
        uint8 [out, in / 2], packed along the inputs, and tiles of scales.
    """
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1).t()
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).contiguous(), tile_scales(scales.t())


def nvfp4_linear_reference(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    scale: Tensor,
    low: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    """Reference implementation in PyTorch, into `out`.

    Args:
        out, bias, gate: see `epilogue.Epilogue`.
        a, a_scale: codes [batch, tokens, in / 2] and tiles of scales, see `blocks.quantize_blocks`.
        weight, w_scale: codes [out, in / 2] and tiles of scales, see `by_output`.
        scale: fp32 [1], of all inputs times that of the whole weight.
        low, up: [batch, tokens, rank] and [rank, out], or neither.
    """
    epilogue = Epilogue(out, bias, gate)
    check_nvfp4_linear(a, a_scale, weight, w_scale, scale, low, up, epilogue)
    product = block_values(a, a_scale) @ block_values(weight, w_scale).t() * scale
    if low is not None and up is not None:
        product = product + low.float() @ up.float()
    finish_reference(product, epilogue)


@jit()
def scale_tile(tiles, ROWS: tl.constexpr, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scales [ROWS, BLOCKS] of tiles [ROWS / 128, BLOCKS / 4, 512]."""
    parts = tl.reshape(tiles, [ROWS // 128, BLOCKS // 4, 32, 4, 4])
    return tl.reshape(tl.permute(parts, (0, 3, 2, 1, 4)), [ROWS, BLOCKS])


@jit(do_not_specialize=["tokens"])
def nvfp4_gemm_kernel(  # type: ignore[no-untyped-def]
    a,
    weight,
    a_scale,
    w_scale,
    scale,
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
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    WHOLE: tl.constexpr,
    PIECES: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BIAS: tl.constexpr,
    LIMIT: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """One program per tile of one batch item's output.

    Parameters:
        a: codes uint8 [batch, tokens, K / 2], contiguous.
        weight: codes uint8 [N, K / 2], contiguous.
        a_scale: E4M3 [batch, ceil(tokens / 128), ceil(K / 64), 512], contiguous.
        w_scale: E4M3 [ceil(N / 128), ceil(K / 64), 512], contiguous.
        scale: fp32 [1].
        low: [batch, tokens, RANK], contiguous, fp32 or 16-bit; None if RANK is 0.
        up: [RANK, N], contiguous, in the dtype of low; None if RANK is 0.
        out: output [batch, tokens, N], strides (out_batch, out_token, 1); see `epilogue.finish_tile`.
        bias: [N] or None.
        gate: [batch, N], strides (gate_batch, 1), or None.
        out_scale: None.
        tokens: rows of each batch item.
        out_batch, out_token, gate_batch: strides in elements.
        N, K: output and input channels.
        RANK: of the low-rank branch; 0 if there is none.
        RANKS: see `int4.add_branch`.
        BLOCK_M, BLOCK_N: rows and columns of a tile, multiples of 128.
        BLOCK_K: input channels per step of the loop, a multiple of 64.
        GROUP_M: tiles below each other that consecutive programs compute, see `epilogue.tile_of`.
        WHOLE: BLOCK_K divides K, so that the loop needs no masks.
        PIECES: in which a tile is stored, see `epilogue.finish_split`.
        EPILOGUE, BIAS, LIMIT, INTEGER: see `epilogue.finish_tile`.

    Grid: (tiles, batch).
    """
    down, across = tile_of(tl.program_id(0), tokens, N, BLOCK_M, BLOCK_N, GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    first = batch * tokens + down * BLOCK_M
    # As in `gemm`: beyond the end the last rows, columns and tiles again, a scalar address and 32-bit offsets.
    half: tl.constexpr = K // 2
    deep: tl.constexpr = (K + 63) // 64
    halves = tl.arange(0, BLOCK_K // 2)
    a_start = a + first * half
    w_start = weight + (across * BLOCK_N).to(tl.int64) * half
    row_at = tl.minimum(tl.arange(0, BLOCK_M), tokens - 1 - down * BLOCK_M)
    column_at = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - across * BLOCK_N)
    a_at = row_at[:, None] * half + halves[None, :]
    w_at = column_at[:, None] * half + halves[None, :]
    tiles = tl.arange(0, BLOCK_K // 64)
    bytes = tl.arange(0, 512)
    high: tl.constexpr = BLOCK_M // 128
    wide: tl.constexpr = BLOCK_N // 128
    a_rows = tl.minimum(down * high + tl.arange(0, high), tl.cdiv(tokens, 128) - 1)
    w_rows = tl.minimum(across * wide + tl.arange(0, wide), (N + 127) // 128 - 1)
    as_start = a_scale + batch * tl.cdiv(tokens, 128) * (deep * 512)
    as_at = (a_rows[:, None, None] * deep + tiles[None, :, None]) * 512 + bytes[None, None, :]
    ws_at = (w_rows[:, None, None] * deep + tiles[None, :, None]) * 512 + bytes[None, None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        if WHOLE:
            a_tile = tl.load(a_start + k // 2 + a_at)
            w_tile = tl.load(w_start + k // 2 + w_at)
            a_by = tl.load(as_start + k * 8 + as_at)
            w_by = tl.load(w_scale + k * 8 + ws_at)
        else:
            a_tile = tl.load(a_start + k // 2 + a_at, mask=(halves < half - k // 2)[None, :], other=0)
            w_tile = tl.load(w_start + k // 2 + w_at, mask=(halves < half - k // 2)[None, :], other=0)
            left = (tiles < deep - k // 64)[None, :, None]
            a_by = tl.load(as_start + k * 8 + as_at, mask=left, other=0.0)
            w_by = tl.load(w_scale + k * 8 + ws_at, mask=left, other=0.0)
        a_by = scale_tile(a_by, BLOCK_M, BLOCK_K // 16)
        w_by = scale_tile(w_by, BLOCK_N, BLOCK_K // 16)
        acc = tl.dot_scaled(a_tile, a_by, "e2m1", tl.trans(w_tile), w_by, "e2m1", acc)
    acc *= tl.load(scale)
    if RANK > 0:
        acc = add_branch(acc, low + first * RANK, up + across * BLOCK_N, row_at, column_at, RANK, RANKS, N)
    rows = down * BLOCK_M + tl.arange(0, BLOCK_M)
    finish_split(
        acc, rows, across * BLOCK_N, batch, tokens, N, out, bias, gate, out_scale, out_batch, out_token, gate_batch,
        BLOCK_M, BLOCK_N, PIECES, EPILOGUE, BIAS, LIMIT, INTEGER,
    )  # fmt: skip


TILES: dict[int, tuple[Tile, ...]] = {
    # M, N, K, warps, stages.
    100: ((128, 256, 256, 8, 3), (128, 128, 256, 8, 3)),
    120: ((128, 128, 256, 8, 3), (128, 128, 128, 8, 3)),
}
"""Oldest architecture → the tiles to measure; none spills. With 4 warps, 128 columns spill 512 bytes a thread on
sm_100."""


def tiles(arch: int) -> tuple[Tile, ...]:
    """The tiles to measure."""
    return TILES[max(oldest for oldest in TILES if oldest <= arch)]


def check_nvfp4_linear(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    scale: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    epilogue: Epilogue,
) -> None:
    """Raises KontextError for operands that do not go together."""
    rows_of(a)
    channels, half = weight.shape
    require(
        a.dtype == weight.dtype == torch.uint8
        and weight.is_contiguous()
        and half == a.shape[2]
        and 2 * half % BLOCK == 0,
        f"NVFP4 weights must be uint8 [channels, {a.shape[2]}] for an input of {list(a.shape)} bytes, with inputs in "
        f"blocks of {BLOCK}, not {weight.dtype} {list(weight.shape)}",
    )
    deep = cdiv(2 * half, TILE_BLOCKS * BLOCK)
    for what, tiled, ahead, rows in (
        ("the input's", a_scale, [a.shape[0]], a.shape[1]),
        ("the weight's", w_scale, [], channels),
    ):
        shape = [*ahead, cdiv(rows, TILE_ROWS), deep, TILE_BYTES]
        require(
            list(tiled.shape) == shape and tiled.dtype == torch.float8_e4m3fn and tiled.is_contiguous(),
            f"{what} scales must be E4M3 in tiles {shape}, not {tiled.dtype} {list(tiled.shape)}",
        )
    require(
        tuple(scale.shape) == (1,) and scale.dtype == torch.float32,
        f"an NVFP4 product takes a scale float32 [1], not {scale.dtype} {list(scale.shape)}",
    )
    check_branch(low, up, rows_of(a), channels)
    epilogue.check(tuple(a.shape[:2]), channels)


def plan_nvfp4_linear(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    scale: Tensor,
    low: Tensor | None,
    up: Tensor | None,
    epilogue: Epilogue,
    arch: int = 0,
    tile: int = 0,
) -> Launch:
    """The launch; operands as in `nvfp4_linear_reference`.

    Args:
        arch: compute capability, 100 for 10.0; 0 for that of the tensors' device.
        tile: index into `tiles`.
    """
    arch = arch or architecture(a)
    check_nvfp4_linear(a, a_scale, weight, w_scale, scale, low, up, epilogue)
    require(
        arch >= NVFP4_CAPABILITY,
        f"NVFP4 products need compute capability 10.0 (Blackwell), this GPU has {dotted(arch)}: "
        "use 16-bit activations",
    )
    m, n, k, warps, stages = tiles(arch)[tile]
    depth, rank = 2 * a.shape[2], 0 if up is None else up.shape[0]
    return plan_product(
        nvfp4_gemm_kernel,
        (m, n, warps, stages),
        {
            "a": a,
            "weight": weight,
            "a_scale": a_scale,
            "w_scale": w_scale,
            "scale": scale,
            "low": low,
            "up": up,
        },
        {
            "K": depth,
            "BLOCK_K": k,
            "WHOLE": depth % k == 0,
            "RANK": rank,
            "RANKS": max(power_of_two(rank), 16),
        },
        epilogue,
    )


def architecture(a: Tensor) -> int:
    """Compute capability of a tensor's device; the first with NVFP4 if it is not a GPU (interpreter, meta tensors)."""
    return capability(a) if a.is_cuda else NVFP4_CAPABILITY


def launch_nvfp4_linear(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    scale: Tensor,
    low: Tensor | None = None,
    up: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    epilogue = Epilogue(out, bias, gate)

    def plan(tile: int) -> Launch:
        return plan_nvfp4_linear(a, a_scale, weight, w_scale, scale, low, up, epilogue, tile=tile)

    sizes = "x".join(map(str, (*a.shape, weight.shape[0])))
    rank = f" rank {up.shape[0]}" if up is not None else ""
    key = f"nvfp4 {sizes} {epilogue.name}{rank}"
    fastest_tile(key, tiles(architecture(a)), plan, epilogue.accumulates_into)


nvfp4_linear_op = register_operator(
    "nvfp4_linear(Tensor(a!) out, Tensor a, Tensor a_scale, Tensor weight, Tensor w_scale, Tensor scale, Tensor? low, "
    "Tensor? up, Tensor? bias, Tensor? gate) -> ()",
    launch_nvfp4_linear,
    nvfp4_linear_reference,
    lambda out, a, a_scale, weight, w_scale, scale, low, up, bias, gate: check_nvfp4_linear(
        a, a_scale, weight, w_scale, scale, low, up, Epilogue(out, bias, gate)
    ),
)
