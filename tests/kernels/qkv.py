"""Random fused QKV products with RoPE tables and norm weights, and what attention is given of them, in float64."""

from __future__ import annotations

import torch

from kontext.model.rope import position_ids, rope_tables

from . import reference

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]
"""qkv, cos, sin, norm weights: the first operands of `norm_rope` and `norm_rope_quantize`."""


def random_case(seed: int, batch: int, tokens: int, heads: int, head_dim: int, size: float = 1.0) -> Case:
    """qkv is a view of wider rows, as in single blocks, where the MLP's input is beside it, and of one more token."""
    g = torch.Generator().manual_seed(seed)
    width = 3 * heads * head_dim
    qkv = (torch.randn(batch, tokens + 1, width + 16, generator=g) * size)[:, :tokens, :width]
    axes = {32: (8, 12, 12), 64: (8, 28, 28), 128: (16, 56, 56)}[head_dim]
    cos, sin = rope_tables(position_ids(1, 1, tokens), axes, 10_000.0)
    return qkv, cos, sin, [1 + torch.randn(head_dim, generator=g) / 4 for _ in range(4)]


def expected_qkv(case: Case, heads: int, text_tokens: int) -> list[torch.Tensor]:
    """q and k normalized and rotated, and v; float64 [batch, heads, tokens, head_dim]."""
    qkv, cos, sin, norms = case
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    is_text = (torch.arange(qkv.shape[1]) < text_tokens)[:, None]
    q_weight, k_weight = (torch.where(is_text, norms[i], norms[i + 2]) for i in (0, 1))
    return [
        reference.norm_rope(q, q_weight, cos, sin),
        reference.norm_rope(k, k_weight, cos, sin),
        v.double(),
    ]
