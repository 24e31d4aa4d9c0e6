"""Latents to the transformer's tokens and back: 2x2 packing, position ids, RoPE tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def pack(latents: Array) -> Array:
    """[batch, channels, h, w] → [batch, h/2 * w/2, 4 * channels], in the order (channel, row, column)."""
    batch, channels, h, w = latents.shape
    grid = latents.reshape(batch, channels, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(grid.reshape(batch, h * w // 4, channels * 4))


def unpack(tokens: Array, h: int, w: int) -> Array:
    """The inverse of `pack` for latents of h x w."""
    batch, _, channels = tokens.shape
    grid = tokens.reshape(batch, h // 2, w // 2, channels // 4, 2, 2).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(grid.reshape(batch, channels // 4, h, w))


def positions(text_tokens: int, grids: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Position ids (image, row, column) of every token, float64 [tokens, 3].

    Text tokens come first and are all zero, then those of each grid of (rows, columns): the first grid is the target,
    image 0; the references are images 1, 2, …
    """
    parts = [np.zeros((text_tokens, 3))]
    for image, (rows, columns) in enumerate(grids):
        row, column = np.divmod(np.arange(rows * columns), columns)
        parts.append(np.stack((np.full_like(row, image), row, column), axis=1).astype(np.float64))
    return np.concatenate(parts)


def rope_tables(ids: NDArray[np.float64], axes_dim: Sequence[int], theta: float) -> tuple[Array, Array]:
    """Half-width cos and sin, fp32 [tokens, head_dim / 2]: position / theta^(2j/d) for channel pair j of each axis."""
    angles = [
        ids[:, axis, None] * theta ** -(np.arange(0, dim, 2) / dim) for axis, dim in enumerate(axes_dim)
    ]
    table = np.concatenate(angles, axis=1)
    return np.cos(table).astype(np.float32), np.sin(table).astype(np.float32)
