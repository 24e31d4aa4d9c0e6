"""QK RMSNorm, RoPE and quantization of Q, K and V in one pass over the fused QKV product.

    q = rotate(q / rms(q) * w_q);   k = rotate(k / rms(k) * w_k) - mean;   codes and scales of q, k, v

qkv is [batch, tokens, 3 * heads * head_dim] as the network's linear gives it (q, then k, then v), text tokens
first; they have norm weights of their own. Tables are half-width and pairs interleaved, as in `model.rope`. Scales
are fp32: one a token for Q, one per block of 128 tokens for K and for V, which attention then multiplies by as by a
scalar. FP8 V is written transposed, [batch, heads, head_dim, padded tokens]: the tensor cores of Hopper want it
along the keys, whose order within every 16 is that in which one thread holds a product's sums (`key_order`).
Smoothing: softmax does not change when one vector is taken from all keys; without their mean, INT8 keeps the
differences (SageAttention, Zhang et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .key_order import interleave, interleave_tile
from .launch import Launch, cdiv, jit, require, tl
from .numeric import CODES, LIMITS, MIN_AMAX, encode, quantize_tile

EPS = 1e-6
BLOCK = 128
"""Tokens of a program, and of a scale of K and V."""

HEAD_DIMS = (32, 64, 128)
VARYING = ("tokens", "text_tokens", "blocks")
"""Arguments that no code is specialized for."""

Quantized = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""q, its scales, k, its scales, v, its scales."""


def padded(tokens: int) -> int:
    return cdiv(tokens, BLOCK) * BLOCK


def split(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views q, k, v [batch, heads, tokens, head_dim] of qkv [batch, tokens, 3 * heads * head_dim]."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def normalized(x: Tensor, text: Tensor, image: Tensor, text_tokens: int, cos: Tensor, sin: Tensor) -> Tensor:
    """RMSNorm and rotation of x [batch, heads, tokens, head_dim], in fp32."""
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    weight = image.float().expand(x.shape[2], -1).clone()
    weight[:text_tokens] = text.float()
    even, odd = (x * weight).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def norm_rope(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int
) -> tuple[Tensor, Tensor]:
    """The plain meaning: q, k [batch, heads, tokens, head_dim] in the dtype of qkv."""
    q, k, _ = split(qkv, heads)
    q = normalized(q, norms[0], norms[2], text_tokens, cos, sin)
    k = normalized(k, norms[1], norms[3], text_tokens, cos, sin)
    return q.to(qkv.dtype), k.to(qkv.dtype)


def block_scales(x: Tensor, format: str) -> Tensor:
    """amax / limit of each block of 128 tokens: x fp32 [batch, heads, tokens, head_dim] → [batch, heads, blocks]."""
    amax = x.abs().amax(-1)
    amax = torch.nn.functional.pad(amax, (0, padded(x.shape[2]) - x.shape[2]))
    return amax.unflatten(-1, (-1, BLOCK)).amax(-1).clamp(min=MIN_AMAX) / LIMITS[format]


def norm_rope_quantize(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int, format: str
) -> Quantized:
    """The plain meaning of `format` "fp8" (all E4M3) or "int8" (INT8 Q and smoothed K; V in E4M3)."""
    check(qkv, cos, heads, format)
    q, k, v = split(qkv, heads)
    q = normalized(q, norms[0], norms[2], text_tokens, cos, sin)
    k = normalized(k, norms[1], norms[3], text_tokens, cos, sin)
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


@jit()
def head_tile(  # type: ignore[no-untyped-def]
    qkv, rows, tokens, batch, part, head, qkv_batch, qkv_token, HEADS: tl.constexpr, D: tl.constexpr
):
    """One head's rows of q (part 0), k (1) or v (2), fp32 [BLOCK, D]; zero beyond the tokens."""
    start = qkv + batch * qkv_batch + (part * HEADS + head) * D
    at = rows.to(tl.int64)[:, None] * qkv_token + tl.arange(0, D)[None, :]
    return tl.load(start + at, mask=(rows < tokens)[:, None], other=0.0).to(tl.float32)


@jit()
def rotated_tile(  # type: ignore[no-untyped-def]
    x, cos, sin, text_weight, image_weight, rows, text_tokens, tokens, EPS: tl.constexpr, D: tl.constexpr
):
    """RMSNorm and rotation of a tile [BLOCK, D], fp32."""
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


@jit(do_not_specialize=list(VARYING))
def norm_rope_kernel(  # type: ignore[no-untyped-def]
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
    PARTS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    EPS: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """One program a block of tokens, a head, and one of q, k (and v where it is quantized)."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2) % PARTS
    batch = (tl.program_id(2) // PARTS).to(tl.int64)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, D)
    inside = (rows < tokens)[:, None]
    x = head_tile(qkv, rows, tokens, batch, part, head, qkv_batch, qkv_token, HEADS, D)
    pair = batch * HEADS + head  # of picture and head
    to = (pair * tokens + rows)[:, None] * D + channels[None, :]
    if part == 0:
        x = rotated_tile(x, cos, sin, q_text, q_image, rows, text_tokens, tokens, EPS, D)
        if QUANTIZE:
            row_step = tl.maximum(tl.max(tl.abs(x), 1), MIN_AMAX) / LIMIT
            tl.store(q_scale + pair * tokens + rows, row_step, mask=rows < tokens)
            tl.store(q + to, quantize_tile(x, row_step[:, None], INTEGER, LIMIT), mask=inside)
        else:
            tl.store(q + to, x.to(q.dtype.element_ty), mask=inside)
    elif part == 1:
        x = rotated_tile(x, cos, sin, k_text, k_image, rows, text_tokens, tokens, EPS, D)
        if QUANTIZE:
            if INTEGER:
                x = tl.where(inside, x - tl.load(mean + pair * D + channels)[None, :], 0.0)
            step = tl.maximum(tl.max(tl.abs(x)), MIN_AMAX) / LIMIT
            tl.store(k_scale + pair * blocks + block, step)
            tl.store(k + to, quantize_tile(x, step, INTEGER, LIMIT), mask=inside)
        else:
            tl.store(k + to, x.to(k.dtype.element_ty), mask=inside)
    elif QUANTIZE:
        v_step = tl.maximum(tl.max(tl.abs(x)), MIN_AMAX) / 448.0
        tl.store(v_scale + pair * blocks + block, v_step)
        # The last block's rows beyond the tokens are zero, and are stored: attention reads whole blocks.
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
    """Sums of normalized and rotated keys over each block of tokens: fp32 [batch, heads, blocks, D]."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    x = head_tile(qkv, rows, tokens, batch, 1, head, qkv_batch, qkv_token, HEADS, D)
    x = rotated_tile(x, cos, sin, k_text, k_image, rows, text_tokens, tokens, EPS, D)
    tl.store(sums + ((batch * HEADS + head) * blocks + block) * D + tl.arange(0, D), tl.sum(x, 0))


def check(qkv: Tensor, cos: Tensor, heads: int, format: str = "") -> None:
    """Raises KontextError for shapes and formats that no kernel takes."""
    require(
        not format or format in CODES, f"attention can be quantized to {' or '.join(CODES)}, not {format!r}"
    )
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


def sizes(qkv: Tensor, text_tokens: int) -> dict[str, int]:
    """The last arguments of both kernels."""
    return {
        "tokens": qkv.shape[1],
        "text_tokens": text_tokens,
        "blocks": cdiv(qkv.shape[1], BLOCK),
        "qkv_batch": qkv.stride(0),
        "qkv_token": qkv.stride(1),
    }


def plan(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norms: list[Tensor],
    heads: int,
    text_tokens: int,
    format: str,
    mean: Tensor | None,
    outputs: dict[str, Tensor | None],
) -> Launch:
    batch, tokens, width = qkv.shape
    parts = 3 if format else 2
    # Without scales that blocks share, small programs: more of them are in flight.
    block = BLOCK if format else BLOCK // 4
    return Launch(
        norm_rope_kernel,
        (cdiv(tokens, block), heads, parts * batch),
        {
            "qkv": qkv,
            "cos": cos,
            "sin": sin,
            "q_text": norms[0],
            "k_text": norms[1],
            "q_image": norms[2],
            "k_image": norms[3],
            "mean": mean,
            **outputs,
            **sizes(qkv, text_tokens),
        },
        {
            "HEADS": heads,
            "D": width // 3 // heads,
            "BLOCK": block,
            "PARTS": parts,
            "QUANTIZE": bool(format),
            "INTEGER": format == "int8",
            "LIMIT": LIMITS.get(format, 0.0),
            "EPS": EPS,
            "MIN_AMAX": MIN_AMAX,
        },
        warps=16 if format else 4,
        stages=1,
        varying=VARYING,
    )


def plan_key_sum(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int, sums: Tensor
) -> Launch:
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


def allocate(qkv: Tensor, heads: int, format: str) -> dict[str, Tensor | None]:
    """The kernel's outputs, not filled."""
    batch, tokens, width = qkv.shape
    shape, blocks = (batch, heads, tokens, width // 3 // heads), cdiv(tokens, BLOCK)
    code = CODES[format] if format else qkv.dtype
    outputs: dict[str, Tensor | None] = {"q": qkv.new_empty(shape, dtype=code), "q_scale": None}
    outputs |= {"k": qkv.new_empty(shape, dtype=code), "k_scale": None, "v": None, "v_scale": None}
    if format:
        outputs["q_scale"] = qkv.new_empty(shape[:3], dtype=torch.float32)
        outputs["k_scale"] = qkv.new_empty((batch, heads, blocks), dtype=torch.float32)
        transposed = (batch, heads, shape[3], blocks * BLOCK)
        outputs["v"] = qkv.new_empty(transposed, dtype=torch.float8_e4m3fn)
        outputs["v_scale"] = qkv.new_empty((batch, heads, blocks), dtype=torch.float32)
    return outputs


def launch_norm_rope(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int
) -> tuple[Tensor, Tensor]:
    check(qkv, cos, heads)
    outputs = allocate(qkv, heads, "")
    plan(qkv, cos, sin, norms, heads, text_tokens, "", None, outputs).run()
    q, k = filled(outputs)
    return q, k


def launch_norm_rope_quantize(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], heads: int, text_tokens: int, format: str
) -> Quantized:
    check(qkv, cos, heads, format)
    batch, tokens, width = qkv.shape
    mean = None
    if format == "int8":
        shape = (batch, heads, cdiv(tokens, BLOCK), width // 3 // heads)
        sums = qkv.new_empty(shape, dtype=torch.float32)
        plan_key_sum(qkv, cos, sin, norms, heads, text_tokens, sums).run()
        mean = sums.sum(2) / tokens
    outputs = allocate(qkv, heads, format)
    plan(qkv, cos, sin, norms, heads, text_tokens, format, mean, outputs).run()
    return quantized(outputs)


def filled(outputs: dict[str, Tensor | None]) -> list[Tensor]:
    """The outputs that there are: q, k, or in the order of `Quantized`."""
    return [tensor for tensor in outputs.values() if tensor is not None]


def quantized(outputs: dict[str, Tensor | None]) -> Quantized:
    q, q_scale, k, k_scale, v, v_scale = filled(outputs)
    return q, q_scale, k, k_scale, v, v_scale


def unfilled(qkv: Tensor, cos: Tensor, heads: int, format: str) -> tuple[Tensor, ...]:
    """What the fake implementations give: checked, allocated, not computed."""
    check(qkv, cos, heads, format)
    return tuple(filled(allocate(qkv, heads, format)))


norm_rope_op = torch.library.custom_op(
    "kontext::norm_rope",
    launch_norm_rope,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor qkv, Tensor cos, Tensor sin, Tensor[] norms, int heads, int text_tokens) -> (Tensor, Tensor)",
)
norm_rope_op.register_kernel("cpu")(norm_rope)
norm_rope_op.register_fake(lambda qkv, cos, sin, norms, heads, text: unfilled(qkv, cos, heads, ""))

norm_rope_quantize_op = torch.library.custom_op(
    "kontext::norm_rope_quantize",
    launch_norm_rope_quantize,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor qkv, Tensor cos, Tensor sin, Tensor[] norms, int heads, int text_tokens, str format) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
norm_rope_quantize_op.register_kernel("cpu")(norm_rope_quantize)
norm_rope_quantize_op.register_fake(
    lambda qkv, cos, sin, norms, heads, text, format: unfilled(qkv, cos, heads, format)
)
