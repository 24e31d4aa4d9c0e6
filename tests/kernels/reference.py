"""The kernels' formulas in float64, written without the package's own code."""

from __future__ import annotations

import math
from typing import Any

import torch


def adaln(x: Any, shift: Any, scale: Any) -> Any:
    x = x.double()
    centered = x - x.mean(-1, keepdim=True)
    normalized = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return normalized * (1 + scale.double()[:, None]) + shift.double()[:, None]


def gelu(x: Any) -> Any:
    x = x.double()
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm_rope(x: Any, weight: Any, cos: Any, sin: Any) -> Any:
    """x [..., tokens, head_dim] with weight [tokens, head_dim]: complex multiplication of pairs."""
    x = x.double()
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(
        cos.double(), sin.double()
    )
    return torch.view_as_real(turned).flatten(-2)


def attention(q: Any, k: Any, v: Any) -> Any:
    """[batch, heads, tokens, head_dim] → [batch, tokens, heads * head_dim]."""
    q, k, v = q.double(), k.double(), v.double()
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(-2)


def int4(packed: Any, scales: Any) -> Any:
    """Weights [in, out] as docs/bundle.md describes them: the first of two in the low half, groups of 64 rows."""
    rows, half = packed.shape
    out = torch.empty(rows, 2 * half, dtype=torch.float64)
    for column, nibble in ((0, packed & 15), (1, packed >> 4)):
        value = nibble.to(torch.int64)
        out[:, column::2] = torch.where(value > 7, value - 16, value).double()
    return out * scales.double()[torch.arange(rows) // 64]


def code_values(packed: Any, table: Any, high_first: bool) -> Any:
    """Values of packed 4-bit codes, two per byte along a row, in the codes' layout."""
    rows, half = packed.shape
    out = torch.empty(rows, 2 * half, dtype=torch.float64)
    halves = (packed >> 4, packed & 15) if high_first else (packed & 15, packed >> 4)
    for column, nibble in enumerate(halves):
        out[:, column::2] = table.double()[nibble.to(torch.int64)]
    return out
