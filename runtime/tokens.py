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


def positions(
    text_tokens: int,
    grids: Sequence[tuple[int, int]],
    origins: Sequence[tuple[int, int, int]] | None = None,
) -> NDArray[np.float64]:
    """Position ids (image, row, column) of every token, float64 [tokens, 3].

    Args:
        text_tokens: they come first and are all zero.
        grids: (rows, columns) of the target and of each reference.
        origins: the position of each grid's first token; None: (0, 0, 0), (1, 0, 0), (2, 0, 0), …
    """
    if origins is None:
        origins = [(image, 0, 0) for image in range(len(grids))]
    parts = [np.zeros((text_tokens, 3))]
    for (rows, columns), (image, top, left) in zip(grids, origins, strict=True):
        row, column = np.divmod(np.arange(rows * columns), columns)
        parts.append(
            np.stack((np.full_like(row, image), row + top, column + left), axis=1).astype(np.float64)
        )
    return np.concatenate(parts)


def rope_tables(ids: NDArray[np.float64], axes_dim: Sequence[int], theta: float) -> tuple[Array, Array]:
    """Half-width cos and sin, fp32 [tokens, head_dim / 2]: position / theta^(2j/d) for channel pair j of each axis."""
    angles = [
        ids[:, axis, None] * theta ** -(np.arange(0, dim, 2) / dim) for axis, dim in enumerate(axes_dim)
    ]
    table = np.concatenate(angles, axis=1)
    return np.cos(table).astype(np.float32), np.sin(table).astype(np.float32)
