"""NVFP4 activations in PyTorch and inside kernels: E2M1 codes in blocks of 16 channels, each block with an E4M3 scale,
under one fp32 scale g for all inputs, which calibration found.

    s = E4M3(min(amax / (6 g), 448));   code = E2M1(y / (s g)), 0 where s g is 0;   y ≈ code * s * g

Both round to nearest, ties to even; codes saturate at ±6. A block with NaN has the scale NaN, so that faults stay
visible; infinity saturates. Codes are two a byte along a row, the first in the low half. Scales are stored in tiles of
128 rows and 4 blocks, as Blackwell's tensor cores and cuBLAS read them: row r of block b is byte
16 (r % 32) + 4 (r // 32) + b of the tile's 512 (cuBLAS documentation, "1D Block Scaling Factors Layout").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch import cdiv, jit, require, tl

NVFP4 = "nvfp4"
"""The format's name among those that activations can be quantized to."""

BLOCK = 16
"""Channels that share a scale."""

TILE_ROWS, TILE_BLOCKS, TILE_BYTES = 128, 4, 512
"""Rows and blocks of a tile of scales, and its bytes."""

LARGEST, LARGEST_SCALE = 6.0, 448.0
"""Of E2M1 and of E4M3."""

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three bits below the sign stand for."""


def quantize_blocks(y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 y [batch, tokens, width] and g fp32 [1] → codes uint8 [batch, tokens, width / 2] and tiles of scales, see
    `tile_scales`."""
    blocks = y.unflatten(-1, (-1, BLOCK))
    scales = (blocks.abs().amax(-1) / (LARGEST * g)).clamp(max=LARGEST_SCALE).to(torch.float8_e4m3fn)
    step = (scales.float() * g)[..., None]
    units = torch.where(step > 0, blocks / step, 0.0).flatten(-2)
    low, high = e2m1_codes(units).unflatten(-1, (-1, 2)).unbind(-1)
    return low | (high << 4), tile_scales(scales)


def e2m1_codes(units: Tensor) -> Tensor:
    """Codes uint8 of the nearest E2M1 values; 8 is the sign, which zero lacks."""
    size = units.abs()
    above = [size > 0.25, size >= 0.75, size > 1.25, size >= 1.75, size > 2.5, size >= 3.5, size > 5.0]
    codes = torch.stack(above).sum(0)
    return (codes + 8 * ((units < 0) & (codes > 0))).to(torch.uint8)


def tile_scales(scales: Tensor) -> Tensor:
    """[..., rows, blocks] → [..., ceil(rows / 128), ceil(blocks / 4), 512]; what is beyond the end is zero."""
    *ahead, rows, blocks = scales.shape
    down, across = cdiv(rows, TILE_ROWS), cdiv(blocks, TILE_BLOCKS)
    beyond = (0, across * TILE_BLOCKS - blocks, 0, down * TILE_ROWS - rows)
    padded = F.pad(scales.view(torch.uint8), beyond).view(scales.dtype)
    tiles = padded.reshape(*ahead, down, 4, 32, across, TILE_BLOCKS)
    order = [*range(len(ahead)), *(len(ahead) + axis for axis in (0, 3, 2, 1, 4))]
    return tiles.permute(order).reshape(*ahead, down, across, TILE_BYTES)


def untile_scales(tiles: Tensor, rows: int, blocks: int) -> Tensor:
    """The scales [..., rows, blocks] of what `tile_scales` returned."""
    *ahead, down, across, _ = tiles.shape
    parts = tiles.reshape(*ahead, down, across, 32, 4, TILE_BLOCKS)
    order = [*range(len(ahead)), *(len(ahead) + axis for axis in (0, 3, 2, 1, 4))]
    whole = parts.permute(order).reshape(*ahead, down * TILE_ROWS, across * TILE_BLOCKS)
    return whole[..., :rows, :blocks]


def block_values(codes: Tensor, tiles: Tensor) -> Tensor:
    """fp32 [..., rows, width], without the scale g, of codes [..., rows, width / 2] and their tiles of scales."""
    table = torch.tensor((*VALUES, *(-value for value in VALUES)), device=codes.device)
    values = table[torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).int()]
    scales = untile_scales(tiles, values.shape[-2], values.shape[-1] // BLOCK).float()
    return (values.unflatten(-1, (-1, BLOCK)) * scales[..., None]).flatten(-2)


def empty_blocks(like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Empty codes and tiles of scales for values of `shape` [batch, tokens, width].

    Raises:
        KontextError: the width is not a multiple of 16.
    """
    batch, tokens, width = shape
    require(width % BLOCK == 0, f"NVFP4 takes channels in blocks of {BLOCK}, not {width} of them")
    tiles = (batch, cdiv(tokens, TILE_ROWS), cdiv(width, TILE_BLOCKS * BLOCK), TILE_BYTES)
    return (
        like.new_empty((batch, tokens, width // 2), dtype=torch.uint8),
        like.new_empty(tiles, dtype=torch.float8_e4m3fn),
    )


def check_block_scale(format: str, g: Tensor | None) -> None:
    """Raises KontextError unless there is a scale g if, and only if, `format` is NVFP4."""
    require(
        (format == NVFP4) == (g is not None),
        "NVFP4 takes a calibrated scale of the inputs" if g is None else f"{format} takes no block_scale",
    )
    require(
        g is None or (tuple(g.shape) == (1,) and g.dtype == torch.float32),
        "the scale of NVFP4 inputs must be float32 [1]",
    )


# -- the same inside kernels --


@jit()
def e2m1_tile(units):  # type: ignore[no-untyped-def]
    """int32 codes of the E2M1 values nearest to fp32 `units`.

    From 1 on, E2M1's exponent and mantissa are the upper bits of fp32's, rounded as integers; below there are two.
    """
    bits = units.to(tl.int32, bitcast=True)
    size = tl.minimum(tl.abs(units), 6.0)
    upper = size.to(tl.int32, bitcast=True)
    upper = ((upper + 0x1FFFFF + ((upper >> 22) & 1)) >> 22) - 252
    magnitude = tl.where(size < 1.0, (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32), upper)
    return magnitude | tl.where(magnitude > 0, (bits >> 28) & 8, 0)


@jit()
def store_blocks(  # type: ignore[no-untyped-def]
    y, row, tokens, out, out_scale, block_scale, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):
    """Stores a row y as NVFP4.

    Parameters:
        y: fp32 [COLUMNS], zero from WIDTH on.
        row: int64, index of the row in [batch * tokens].
        tokens: rows of each batch item.
        out: uint8 [batch, tokens, WIDTH / 2], contiguous.
        out_scale: E4M3 [batch, ceil(tokens / 128), ceil(WIDTH / 64), 512], contiguous.
        block_scale: fp32 [1], the scale g.
        WIDTH: channels, a multiple of 16.
        COLUMNS: WIDTH rounded up to a power of two, at least 64.
    """
    g = tl.load(block_scale)
    values = tl.reshape(y, [COLUMNS // 16, 16])
    # Largest of the magnitudes' bits: their order is the numbers', and NaN is above infinity.
    amax = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1).to(tl.float32, bitcast=True)
    wanted = tl.minimum(amax / (6.0 * g), 448.0, propagate_nan=tl.PropagateNan.ALL)
    scale = wanted.to(tl.float8e4nv)
    step = scale.to(tl.float32) * g
    used = step > 0
    units = values / tl.where(used, step, 1.0)[:, None]
    codes = tl.where(used[:, None], e2m1_tile(units), 0)
    low, high = tl.split(tl.reshape(codes, [COLUMNS // 2, 2]))
    halves = tl.arange(0, COLUMNS // 2)
    tl.store(out + row * (WIDTH // 2) + halves, (low | (high << 4)).to(tl.uint8), mask=halves < WIDTH // 2)
    across: tl.constexpr = (WIDTH + 63) // 64
    token = row % tokens
    tile = (row // tokens) * tl.cdiv(tokens, 128) + token // 128
    at = tile * (across * 512) + (token % 32) * 16 + ((token % 128) // 32) * 4
    blocks = tl.arange(0, COLUMNS // 16)
    tl.store(out_scale + at + (blocks // 4) * 512 + blocks % 4, scale, mask=blocks < across * 4)
