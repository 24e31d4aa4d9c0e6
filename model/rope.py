"""Rotary position embedding over (image index, row, column): its tables, and the rotation."""

from __future__ import annotations

import torch
from torch import Tensor


def position_ids(image_index: int, height: int, width: int) -> Tensor:
    """Positions of one image's tokens, row by row: float64 [height * width, 3] of (image_index, row, column).

    The target is image 0, references are 1, 2, …; text tokens are at zero (`torch.zeros(n, 3)`).
    """
    ids = torch.zeros(height, width, 3, dtype=torch.float64)
    ids[..., 0] = image_index
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None, :]
    return ids.reshape(-1, 3)


def rope_tables(
    ids: Tensor, axes_dim: tuple[int, ...], theta: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Half-width cos and sin tables, float32 [tokens, head_dim / 2], for `ids` [tokens, axes].

    Angle j of an axis of d channels at position p is p / theta^(2j/d), computed in float64 as in the reference; a graph
    for engines without float64 takes `dtype` float32 for the product, which changes the tables by 8e-6 at position 128.
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        frequency = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles.append(ids[:, axis, None].to(dtype) * frequency.to(dtype))
    table = torch.cat(angles, dim=-1)
    return table.cos().float(), table.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates interleaved channel pairs: x [batch, heads, tokens, head_dim], tables [tokens, head_dim / 2].

    While a graph is traced, this is ONNX's RotaryEmbedding operator, which engines fuse into attention.
    """
    if torch.onnx.is_in_onnx_export():
        shape = (x.shape[0], *cos.shape)  # the operator takes one table per batch row
        tables = (table.to(x.dtype)[None].expand(shape) for table in (cos, sin))
        return torch.onnx.ops.rotary_embedding(x, *tables, interleaved=True)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)
