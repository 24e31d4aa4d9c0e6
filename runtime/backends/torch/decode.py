"""Tiled decoding: the autoencoder's decoder on overlapping tiles, if a picture's activations do not fit the device.

This is an approximation: the decoder's normalizations and its attention see a tile, not the picture. Overlaps are
blended linearly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 64
"""A tile's side in latents: 512 pixels in FLUX."""

OVERLAP = 16
"""Latents that neighbouring tiles share."""


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis of `length`; the last one ends with it."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def ramp(tile: int, overlap: int, first: bool, last: bool) -> Tensor:
    """Blending weights [tile] along one axis: rising and falling over the overlaps, 1 at the picture's border."""
    weights = torch.ones(tile)
    if overlap:
        rising = (torch.arange(overlap) + 0.5) / overlap
        if not first:
            weights[:overlap] = rising
        if not last:
            weights[-overlap:] = torch.minimum(weights[-overlap:], rising.flip(0))
    return weights


def decode_tiled(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    downscale: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """Pictures fp32 [batch, 3, downscale * h, downscale * w] of latents [batch, channels, h, w]."""
    batch, _, height, width = latents.shape
    tile_height, tile_width = min(tile, height), min(tile, width)
    out = torch.zeros(batch, 3, height * downscale, width * downscale, device=latents.device)
    total = torch.zeros(height * downscale, width * downscale, device=latents.device)
    rows, columns = starts(height, tile_height, overlap), starts(width, tile_width, overlap)
    for row in rows:
        for column in columns:
            piece = latents[:, :, row : row + tile_height, column : column + tile_width]
            across = ramp(
                tile_width * downscale, overlap * downscale, column == 0, column + tile_width == width
            )
            down = ramp(tile_height * downscale, overlap * downscale, row == 0, row + tile_height == height)
            weights = (down[:, None] * across[None, :]).to(latents.device)
            y = slice(row * downscale, (row + tile_height) * downscale)
            x = slice(column * downscale, (column + tile_width) * downscale)
            out[:, :, y, x] += decode(piece).float() * weights
            total[y, x] += weights
    return out / total
