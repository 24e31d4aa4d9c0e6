"""RMSNorm and RoPE of queries and keys (`norm_rope`), and quantization of Q, K and V for attention, in one pass.

    q = rotate(q / rms(q) * q_weight);   k = rotate(k / rms(k) * k_weight) - mean;   codes and scales of q, k, v

Scales are fp32: one per token for Q, one per block of 128 tokens for K and for V, so that attention multiplies a block
of scores by one number. V is E4M3 and stored transposed, [batch, heads, head_dim, padded tokens]: Hopper's 8-bit
tensor cores read it along the keys. The keys' order within every 16 is that in which one thread holds the scores
(`key_order`).

INT8 keys are smoothed: softmax does not change when the same vector is subtracted from all keys, and without their
mean the codes resolve the differences (SageAttention, Zhang et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .key_order import interleave, interleave_tile
from .launch import Launch, cdiv, jit, require, tl
from .norm_rope import EPS, check_norm_rope, load_head, norm_rope_tile, normalize_and_rotate, split_qkv
from .numeric import CODES, LIMITS, MIN_AMAX, encode, quantize_tile
from .operators import register_operator

BLOCK = 128
"""Tokens that share a scale of K and of V; also the tokens of a program."""

VARYING = ("tokens", "text_tokens", "blocks")

QuantizedQKV = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""q, its scales, k, its scales, v, its scales; see `norm_rope_quantize_reference`."""


def padded(tokens: int) -> int:
    """`tokens` rounded up to whole blocks."""
    return cdiv(tokens, BLOCK) * BLOCK


def block_scales(x: Tensor, format: str) -> Tensor:
    """amax / limit of each block of 128 tokens: x fp32 [batch, heads, tokens, head_dim] → [batch, heads, blocks]."""
    amax = x.abs().amax(-1)
    amax = torch.nn.functional.pad(amax, (0, padded(x.shape[2]) - x.shape[2]))
    return amax.unflatten(-1, (-1, BLOCK)).amax(-1).clamp(min=MIN_AMAX) / LIMITS[format]


def norm_rope_quantize_reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int, format: str
) -> QuantizedQKV:
    """Reference implementation in PyTorch.

    Args:
        qkv, cos, sin, norms, heads, text_tokens: as in `norm_rope.norm_rope_reference`.
        format: "fp8" (Q, K and V in E4M3) or "int8" (Q and smoothed K in INT8, V in E4M3).

    Returns:
        q, k: codes [batch, heads, tokens, head_dim]; v: codes [batch, heads, head_dim, padded tokens], zero beyond
        the last token. Scales fp32: of q [batch, heads, tokens], of k and v [batch, heads, blocks].
    """
    check_norm_rope_quantize(qkv, cos, heads, format)
    q, k, v = split_qkv(qkv, heads)
    q = normalize_and_rotate(q, norms[0], norms[2], text_tokens, cos, sin)
    k = normalize_and_rotate(k, norms[1], norms[3], text_tokens, cos, sin)
    v = v.float()
    if format == "int8":
        k = k - k.mean(2, keepdim=True)
    tokens = k.shape[2]
    q_scale = q.abs().amax(-1).clamp(min=MIN_AMAX) / LIMITS[format]
    k_scale, v_scale = block_scales(k, format), block_scales(v, "fp8")
    k_codes, v_codes = (
        encode(x / scale.repeat_interleave(BLOCK, -1)[..., :tokens, None], kind)
        for x, scale, kind in ((k, k_scale, format), (v, v_scale, "fp8"))
    )
    transposed = torch.zeros((*v.shape[:2], v.shape[3], padded(tokens)), dtype=v_codes.dtype, device=v.device)
    transposed[..., :tokens] = v_codes.transpose(2, 3)
    return encode(q / q_scale[..., None], format), q_scale, k_codes, k_scale, interleave(transposed), v_scale


@jit(do_not_specialize=list(VARYING))
def norm_rope_quantize_kernel(  # type: ignore[no-untyped-def]
    qkv,
    cos,
    sin,
    q_text,
    k_text,
    q_image,
    k_image,
    mean,
    q,
    q_scale,
    k,
    k_scale,
    v,
    v_scale,
    tokens,
    text_tokens,
    blocks,
    qkv_batch,
    qkv_token,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    EPS: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """One program per block of tokens, head, and q, k or v.

    Parameters:
        qkv: 16-bit or fp32 [batch, tokens, 3 * HEADS * D], strides (qkv_batch, qkv_token, 1).
        cos, sin: fp32 [tokens, D / 2], contiguous.
        q_text, k_text, q_image, k_image: RMSNorm weights [D].
        mean: fp32 [batch, HEADS, D], of the normalized and rotated keys; None unless INTEGER.
        q, k: output codes [batch, HEADS, tokens, D], contiguous, INT8 or E4M3.
        v: output codes E4M3 [batch, HEADS, D, blocks * BLOCK], contiguous.
        q_scale: output fp32 [batch, HEADS, tokens].
        k_scale, v_scale: outputs fp32 [batch, HEADS, blocks].
        tokens, text_tokens: of the whole sequence, and of the text at its start.
        blocks: ceil(tokens / BLOCK).
        qkv_batch, qkv_token: strides of qkv in elements.
        HEADS, D: number of heads, channels of each.
        BLOCK: tokens of a program, which share a scale of K and of V.
        INTEGER: Q and K are INT8 and K is smoothed; otherwise E4M3.
        LIMIT: the largest code of Q and K, 127 or 448.
        EPS: of RMSNorm.
        MIN_AMAX: amax of a row or block of zeros, so that no scale is zero.

    Grid: (blocks, HEADS, 3 * batch); the last axis alternates q, k and v.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2) % 3
    batch = (tl.program_id(2) // 3).to(tl.int64)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, D)
    inside = (rows < tokens)[:, None]
    x = load_head(qkv, rows, tokens, batch, part, head, qkv_batch, qkv_token, HEADS, D)
    pair = batch * HEADS + head
    to = (pair * tokens + rows)[:, None] * D + channels[None, :]
    if part == 0:
        x = norm_rope_tile(x, cos, sin, q_text, q_image, rows, text_tokens, tokens, EPS, D)
        row_step = tl.maximum(tl.max(tl.abs(x), 1), MIN_AMAX) / LIMIT
        tl.store(q_scale + pair * tokens + rows, row_step, mask=rows < tokens)
        tl.store(q + to, quantize_tile(x, row_step[:, None], INTEGER, LIMIT), mask=inside)
    elif part == 1:
        x = norm_rope_tile(x, cos, sin, k_text, k_image, rows, text_tokens, tokens, EPS, D)
        if INTEGER:
            x = tl.where(inside, x - tl.load(mean + pair * D + channels)[None, :], 0.0)
        step = tl.maximum(tl.max(tl.abs(x)), MIN_AMAX) / LIMIT
        tl.store(k_scale + pair * blocks + block, step)
        tl.store(k + to, quantize_tile(x, step, INTEGER, LIMIT), mask=inside)
    else:
        v_step = tl.maximum(tl.max(tl.abs(x)), MIN_AMAX) / 448.0
        tl.store(v_scale + pair * blocks + block, v_step)
        # Stored without a mask: attention reads whole blocks, and rows beyond the last token are zero.
        at = (pair * D + channels)[:, None] * (blocks * BLOCK) + rows[None, :]
        tl.store(v + at, interleave_tile(tl.trans(quantize_tile(x, v_step, False, 448.0))))


@jit(do_not_specialize=list(VARYING))
def key_sum_kernel(  # type: ignore[no-untyped-def]
    qkv,
    cos,
    sin,
    k_text,
    k_image,
    sums,
    tokens,
    text_tokens,
    blocks,
    qkv_batch,
    qkv_token,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
):
    """Sums of the normalized and rotated keys over each block of tokens, of which the keys' mean is made.

    Parameters:
        sums: output fp32 [batch, HEADS, blocks, D], contiguous.
        all others: as in `norm_rope_quantize_kernel`.

    Grid: (blocks, HEADS, batch).
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    x = load_head(qkv, rows, tokens, batch, 1, head, qkv_batch, qkv_token, HEADS, D)
    x = norm_rope_tile(x, cos, sin, k_text, k_image, rows, text_tokens, tokens, EPS, D)
    tl.store(sums + ((batch * HEADS + head) * blocks + block) * D + tl.arange(0, D), tl.sum(x, 0))


def check_norm_rope_quantize(qkv: Tensor, cos: Tensor, heads: int, format: str) -> None:
    """Raises KontextError for shapes and formats that the kernels do not take."""
    require(format in CODES, f"attention can be quantized to {' or '.join(CODES)}, not {format!r}")
    check_norm_rope(qkv, cos, heads)


def sizes(qkv: Tensor, text_tokens: int) -> dict[str, int]:
    """The last arguments of both kernels."""
    return {
        "tokens": qkv.shape[1],
        "text_tokens": text_tokens,
        "blocks": cdiv(qkv.shape[1], BLOCK),
        "qkv_batch": qkv.stride(0),
        "qkv_token": qkv.stride(1),
    }


def plan_norm_rope_quantize(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: list[Tensor],
    heads: int,
    text_tokens: int,
    format: str,
    mean: Tensor | None,
    outputs: QuantizedQKV,
) -> Launch:
    """The launch; operands as in the kernel and `norm_rope_quantize_reference`, `outputs` as `empty_outputs` gives."""
    batch, _, width = qkv.shape
    names = ("q", "q_scale", "k", "k_scale", "v", "v_scale")
    return Launch(
        norm_rope_quantize_kernel,
        (cdiv(qkv.shape[1], BLOCK), heads, 3 * batch),
        {
            "qkv": qkv,
            "cos": cos,
            "sin": sin,
            "q_text": norms[0],
            "k_text": norms[1],
            "q_image": norms[2],
            "k_image": norms[3],
            "mean": mean,
            **dict(zip(names, outputs, strict=True)),
            **sizes(qkv, text_tokens),
        },
        {
            "HEADS": heads,
            "D": width // 3 // heads,
            "BLOCK": BLOCK,
            "INTEGER": format == "int8",
            "LIMIT": LIMITS[format],
            "EPS": EPS,
            "MIN_AMAX": MIN_AMAX,
        },
        warps=16,
        stages=1,
        varying=VARYING,
    )


def plan_key_sum(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int, sums: Tensor
) -> Launch:
    """The launch of `key_sum_kernel` into `sums` [batch, heads, blocks, head_dim]."""
    batch, tokens, width = qkv.shape
    return Launch(
        key_sum_kernel,
        (cdiv(tokens, BLOCK), heads, batch),
        {
            "qkv": qkv,
            "cos": cos,
            "sin": sin,
            "k_text": norms[1],
            "k_image": norms[3],
            "sums": sums,
            **sizes(qkv, text_tokens),
        },
        {"HEADS": heads, "D": width // 3 // heads, "BLOCK": BLOCK, "EPS": EPS},
        warps=16,
        stages=1,
        varying=VARYING,
    )


def empty_outputs(qkv: Tensor, heads: int, format: str) -> QuantizedQKV:
    """Empty tensors of the shapes and dtypes that `norm_rope_quantize_reference` returns."""
    batch, tokens, width = qkv.shape
    head_dim, blocks = width // 3 // heads, cdiv(tokens, BLOCK)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return qkv.new_empty((batch, heads, *shape), dtype=dtype)

    return (
        empty(tokens, head_dim, dtype=CODES[format]),
        empty(tokens, dtype=torch.float32),
        empty(tokens, head_dim, dtype=CODES[format]),
        empty(blocks, dtype=torch.float32),
        empty(head_dim, blocks * BLOCK, dtype=CODES["fp8"]),
        empty(blocks, dtype=torch.float32),
    )


def launch_norm_rope_quantize(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int, format: str
) -> QuantizedQKV:
    check_norm_rope_quantize(qkv, cos, heads, format)
    mean = None
    if format == "int8":
        batch, tokens, width = qkv.shape
        shape = (batch, heads, cdiv(tokens, BLOCK), width // 3 // heads)
        sums = qkv.new_empty(shape, dtype=torch.float32)
        plan_key_sum(qkv, cos, sin, norms, heads, text_tokens, sums).run()
        mean = sums.sum(2) / tokens
    outputs = empty_outputs(qkv, heads, format)
    plan_norm_rope_quantize(qkv, cos, sin, norms, heads, text_tokens, format, mean, outputs).run()
    return outputs


def fake_norm_rope_quantize(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int, format: str
) -> QuantizedQKV:
    check_norm_rope_quantize(qkv, cos, heads, format)
    return empty_outputs(qkv, heads, format)


norm_rope_quantize_op = register_operator(
    "norm_rope_quantize(Tensor qkv, Tensor cos, Tensor sin, Tensor[] norms, int heads, int text_tokens, str format) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    launch_norm_rope_quantize,
    norm_rope_quantize_reference,
    fake_norm_rope_quantize,
)
