"""RMSNorm of queries and keys, then rotary position embedding (RoPE), in one pass over the fused QKV product.

    q = rotate(q / rms(q) * q_weight);   k = rotate(k / rms(k) * k_weight)
    rotate(even, odd) = (even * cos - odd * sin, odd * cos + even * sin)

qkv is [batch, tokens, 3 * heads * head_dim] as the network's linear returns it: all heads of q, then of k, then of v.
Text tokens come first and have their own norm weights. RoPE tables have half the width, and pairs of channels are
interleaved, as in `model.rope`. `norm_rope_quantize` does the same and quantizes.

Sources: RMSNorm (Zhang and Sennrich 2019), RoPE (RoFormer, Su et al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Launch, cdiv, jit, require, tl
from .operators import register_operator

EPS = 1e-6
HEAD_DIMS = (32, 64, 128)
"""Channels of a head that the kernels are compiled for."""

BLOCK = 32
"""Tokens of a program: small programs, so that more of them are in flight."""


def split_qkv(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views q, k, v [batch, heads, tokens, head_dim] of qkv [batch, tokens, 3 * heads * head_dim]."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def normalize_and_rotate(
    x: Tensor, text_weight: Tensor, image_weight: Tensor, text_tokens: int, cos: Tensor, sin: Tensor
) -> Tensor:
    """RMSNorm and RoPE of x [batch, heads, tokens, head_dim], in fp32."""
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    weight = image_weight.float().expand(x.shape[2], -1).clone()
    weight[:text_tokens] = text_weight.float()
    even, odd = (x * weight).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def norm_rope_reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int
) -> tuple[Tensor, Tensor]:
    """Reference implementation in PyTorch.

    Args:
        qkv: [batch, tokens, 3 * heads * head_dim], any strides but 1 between channels.
        cos, sin: fp32 [tokens, head_dim / 2].
        norms: RMSNorm weights [head_dim] of the text's q and k, then of the image's q and k.
        heads: their number.
        text_tokens: the first so many tokens are text.

    Returns:
        q, k [batch, heads, tokens, head_dim] in the dtype of qkv.
    """
    q, k, _ = split_qkv(qkv, heads)
    q = normalize_and_rotate(q, norms[0], norms[2], text_tokens, cos, sin)
    k = normalize_and_rotate(k, norms[1], norms[3], text_tokens, cos, sin)
    return q.to(qkv.dtype), k.to(qkv.dtype)


@jit()
def load_head(  # type: ignore[no-untyped-def]
    qkv, rows, tokens, batch, part, head, qkv_batch, qkv_token, HEADS: tl.constexpr, D: tl.constexpr
):
    """One head's rows of q (part 0), k (1) or v (2), fp32 [BLOCK, D]; zero beyond the last token."""
    start = qkv + batch * qkv_batch + (part * HEADS + head) * D
    at = rows.to(tl.int64)[:, None] * qkv_token + tl.arange(0, D)[None, :]
    return tl.load(start + at, mask=(rows < tokens)[:, None], other=0.0).to(tl.float32)


@jit()
def norm_rope_tile(  # type: ignore[no-untyped-def]
    x, cos, sin, text_weight, image_weight, rows, text_tokens, tokens, EPS: tl.constexpr, D: tl.constexpr
):
    """RMSNorm and RoPE of a tile, fp32 [BLOCK, D]."""
    channels = tl.arange(0, D)
    x = x * tl.rsqrt(tl.sum(x * x, 1) / D + EPS)[:, None]
    text = tl.load(text_weight + channels).to(tl.float32)
    image = tl.load(image_weight + channels).to(tl.float32)
    x = x * tl.where((rows < text_tokens)[:, None], text[None, :], image[None, :])
    even, odd = tl.split(tl.reshape(x, [rows.shape[0], D // 2, 2]))
    at = rows[:, None] * (D // 2) + tl.arange(0, D // 2)[None, :]
    inside = (rows < tokens)[:, None]
    c = tl.load(cos + at, mask=inside, other=0.0)
    s = tl.load(sin + at, mask=inside, other=0.0)
    return tl.reshape(tl.join(even * c - odd * s, odd * c + even * s), [rows.shape[0], D])


VARYING = ("tokens", "text_tokens")


@jit(do_not_specialize=list(VARYING))
def norm_rope_kernel(  # type: ignore[no-untyped-def]
    qkv,
    cos,
    sin,
    q_text,
    k_text,
    q_image,
    k_image,
    q,
    k,
    tokens,
    text_tokens,
    qkv_batch,
    qkv_token,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
):
    """One program per block of tokens, head, and q or k.

    Parameters:
        qkv: [batch, tokens, 3 * HEADS * D], strides (qkv_batch, qkv_token, 1); the dtype of q and k.
        cos, sin: fp32 [tokens, D / 2], contiguous.
        q_text, k_text, q_image, k_image: RMSNorm weights [D].
        q, k: outputs [batch, HEADS, tokens, D], contiguous.
        tokens, text_tokens: of the whole sequence, and of the text at its start.
        qkv_batch, qkv_token: strides of qkv in elements.
        HEADS, D: number of heads, channels of each.
        BLOCK: tokens of a program.
        EPS: of RMSNorm.

    Grid: (blocks of tokens, HEADS, 2 * batch); the last axis alternates q and k.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    part = tl.program_id(2) % 2
    batch = (tl.program_id(2) // 2).to(tl.int64)
    x = load_head(qkv, rows, tokens, batch, part, head, qkv_batch, qkv_token, HEADS, D)
    to = ((batch * HEADS + head) * tokens + rows)[:, None] * D + tl.arange(0, D)[None, :]
    inside = (rows < tokens)[:, None]
    if part == 0:
        x = norm_rope_tile(x, cos, sin, q_text, q_image, rows, text_tokens, tokens, EPS, D)
        tl.store(q + to, x.to(q.dtype.element_ty), mask=inside)
    elif part == 1:  # a plain else takes 96 registers instead of 86 on sm_90 (Triton 3.9)
        x = norm_rope_tile(x, cos, sin, k_text, k_image, rows, text_tokens, tokens, EPS, D)
        tl.store(k + to, x.to(k.dtype.element_ty), mask=inside)


def check_norm_rope(qkv: Tensor, cos: Tensor, heads: int) -> None:
    """Raises KontextError for shapes that the kernels do not take."""
    require(
        qkv.ndim == 3 and qkv.shape[2] % (3 * heads) == 0 and qkv.stride(2) == 1,
        f"qkv must be [batch, tokens, 3 * {heads} * head_dim], not {list(qkv.shape)}",
    )
    head_dim = qkv.shape[2] // 3 // heads
    require(
        head_dim in HEAD_DIMS,
        f"attention takes heads of {', '.join(map(str, HEAD_DIMS))} channels, not {head_dim}",
    )
    require(
        tuple(cos.shape) == (qkv.shape[1], head_dim // 2),
        f"RoPE tables must be {[qkv.shape[1], head_dim // 2]}, not {list(cos.shape)}",
    )


def plan_norm_rope(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: list[Tensor],
    heads: int,
    text_tokens: int,
    q: Tensor,
    k: Tensor,
) -> Launch:
    """The launch; operands as in `norm_rope_reference`, its results are written into q and k."""
    batch, tokens, width = qkv.shape
    return Launch(
        norm_rope_kernel,
        (cdiv(tokens, BLOCK), heads, 2 * batch),
        {
            "qkv": qkv,
            "cos": cos,
            "sin": sin,
            "q_text": norms[0],
            "k_text": norms[1],
            "q_image": norms[2],
            "k_image": norms[3],
            "q": q,
            "k": k,
            "tokens": tokens,
            "text_tokens": text_tokens,
            "qkv_batch": qkv.stride(0),
            "qkv_token": qkv.stride(1),
        },
        {"HEADS": heads, "D": width // 3 // heads, "BLOCK": BLOCK, "EPS": EPS},
        warps=4,
        stages=1,
        varying=VARYING,
    )


def empty_qk(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Empty q and k [batch, heads, tokens, head_dim]."""
    batch, tokens, width = qkv.shape
    shape = (batch, heads, tokens, width // 3 // heads)
    return qkv.new_empty(shape), qkv.new_empty(shape)


def launch_norm_rope(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int
) -> tuple[Tensor, Tensor]:
    check_norm_rope(qkv, cos, heads)
    q, k = empty_qk(qkv, heads)
    plan_norm_rope(qkv, cos, sin, norms, heads, text_tokens, q, k).run()
    return q, k


def fake_norm_rope(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int
) -> tuple[Tensor, Tensor]:
    check_norm_rope(qkv, cos, heads)
    return empty_qk(qkv, heads)


norm_rope_op = register_operator(
    "norm_rope(Tensor qkv, Tensor cos, Tensor sin, Tensor[] norms, int heads, int text_tokens) -> (Tensor, Tensor)",
    launch_norm_rope,
    norm_rope_reference,
    fake_norm_rope,
)
