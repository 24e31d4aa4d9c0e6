"""Full (non-causal) attention in one pass over the keys: 16-bit, FP8, or INT8 Q and K with FP8 V.

    out = softmax(q k^T / sqrt(head_dim)) v

Online softmax in base 2 (FlashAttention-2, Dao 2023). Quantized operands come from `norm_rope_quantize`: Q has a scale
per token and K one per block of 128 keys, so a block of scores is descaled by one factor per row, which the softmax's
own multiplication includes. V's block scales are applied as ratios when the accumulator is rescaled. P is at most 448,
E4M3's largest number, since the maximum is lowered by log2(448); the row sum contains the same factor, which cancels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .autotune import Tile, fastest_tile, generation
from .key_order import deinterleave, interleave_tile
from .launch import Launch, capability, cdiv, jit, require, require_capability, require_fp8, tl
from .norm_rope import HEAD_DIMS
from .norm_rope_quantize import BLOCK
from .operators import register_operator

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
FP8_OFFSET = math.log2(448.0)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """fp32 of codes [batch, heads, tokens, head_dim] with a scale per token or per block of 128 tokens."""
    if scale.shape[2] != codes.shape[2]:
        scale = scale.repeat_interleave(BLOCK, 2)[:, :, : codes.shape[2]]
    return codes.float() * scale[..., None]


def softmax_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention: q, k, v [batch, heads, tokens, head_dim] → [batch, tokens, heads * head_dim]."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Reference implementation in PyTorch.

    Args:
        q, k, v: [batch, heads, tokens, head_dim] of one dtype; k and v may have another number of tokens than q.

    Returns:
        [batch, q tokens, heads * head_dim], contiguous, in their dtype.
    """
    check_attention(q, k, v)
    return softmax_product(q, k, v).contiguous()


def attention_quantized_reference(
    q: Tensor, q_scale: Tensor, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Reference implementation in PyTorch. Unlike the kernel it does not round P.

    Args:
        q, q_scale, k, k_scale, v, v_scale: codes and scales as `norm_rope_quantize` returns them.
        dtype: of the output.

    Returns:
        [batch, q tokens, heads * head_dim], contiguous, in `dtype`.
    """
    check_attention(q, k, v)
    values = dequantize(deinterleave(v).transpose(2, 3)[:, :, : k.shape[2]], v_scale)
    return softmax_product(dequantize(q, q_scale), dequantize(k, k_scale), values).to(dtype).contiguous()


@jit()
def attend(  # type: ignore[no-untyped-def]
    acc,
    total,
    largest,
    v_before,
    q,
    row_scale,
    k,
    k_scale,
    k_token,
    v,
    v_scale,
    v_stride,
    start,
    k_tokens,
    channels,
    MASKED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
    IMPRECISE: tl.constexpr,
):
    """One step of the online softmax, over a block of keys.

    Parameters:
        acc: unnormalized output, fp32 [BLOCK_M, D], in units of `v_before` if QUANTIZED.
        total: row sums of P, fp32 [BLOCK_M].
        largest: row maxima of the scores in base 2, fp32 [BLOCK_M].
        v_before: the scale of V that `acc` is in units of, fp32; unused unless QUANTIZED.
        q: [BLOCK_M, D].
        row_scale: log2(e) / sqrt(D), times the rows' scale of q if QUANTIZED; fp32 [BLOCK_M].
        k, v, k_scale, v_scale: pointers to this batch item's and head's, see `attention_kernel`.
        k_token, v_stride: strides, see `attention_kernel`.
        start: the block's first key.
        k_tokens: number of keys.
        channels: 0 to D - 1.
        MASKED: the block goes beyond the last key.
        QUANTIZED, BLOCK_N, KEY_BLOCK, OFFSET, IMPRECISE: see `attention_kernel`.

    Returns:
        The new acc, total, largest and v_before.
    """
    # A scalar address and 32-bit offsets that stay the same: 64-bit addresses of every element would spill.
    ahead = tl.arange(0, BLOCK_N)
    there = start + ahead < k_tokens
    k_tile_at = k + start * k_token.to(tl.int64) + (ahead[None, :] * k_token + channels[:, None])
    if MASKED:
        k_tile = tl.load(k_tile_at, mask=there[None, :], other=0.0)
    else:
        k_tile = tl.load(k_tile_at)
    scores = tl.dot(q, k_tile, out_dtype=tl.int32 if q.dtype == tl.int8 else tl.float32).to(tl.float32)
    factor = row_scale
    if QUANTIZED:
        factor = row_scale * tl.load(k_scale + start // KEY_BLOCK)
    if MASKED:
        scores = tl.where(there[None, :], scores, float("-inf"))
    now = tl.maximum(largest, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * factor[:, None] - (now - OFFSET)[:, None])
    decay = tl.exp2(largest - now)
    total = total * decay + tl.sum(weights, 1)
    if QUANTIZED:
        v_now = tl.load(v_scale + start // KEY_BLOCK)
        decay = decay * (v_before / v_now)
        v_before = v_now
        # Stored transposed, interleaved and padded with zeros to whole blocks.
        v_tile = tl.load(v + start + (channels[None, :] * v_stride + ahead[:, None]))
    else:
        v_tile_at = v + start * v_stride.to(tl.int64) + (ahead[:, None] * v_stride + channels[None, :])
        if MASKED:
            v_tile = tl.load(v_tile_at, mask=there[:, None], other=0.0)
        else:
            v_tile = tl.load(v_tile_at)
    acc = acc * decay[:, None]
    weights = weights.to(v_tile.dtype)
    if QUANTIZED:  # in the order of V's keys; no data moves between threads
        weights = interleave_tile(weights)
    acc = tl.dot(weights, v_tile, acc, max_num_imprecise_acc=IMPRECISE)
    return acc, total, now, v_before


@jit(do_not_specialize=["q_tokens", "k_tokens"])
def attention_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    out,
    q_scale,
    k_scale,
    v_scale,
    q_tokens,
    k_tokens,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_stride,
    softmax_scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QUANTIZED: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
    IMPRECISE: tl.constexpr,
):
    """One program per block of queries of one head.

    Parameters:
        q: [batch, HEADS, q_tokens, D], strides (q_batch, q_head, q_token, 1); fp32 or 16-bit, or codes if QUANTIZED.
        k: [batch, HEADS, k_tokens, D], strides (k_batch, k_head, k_token, 1), in the dtype of q.
        v: [batch, HEADS, k_tokens, D], strides (v_batch, v_head, v_stride, 1), in the dtype of q; if QUANTIZED, E4M3
            [batch, HEADS, D, blocks * KEY_BLOCK], strides (v_batch, v_head, v_stride, 1), zero beyond the last key, its
            keys in the order of `key_order.interleave`.
        out: output [batch, q_tokens, HEADS, D], contiguous, fp32 or 16-bit.
        q_scale: fp32 [batch, HEADS, q_tokens], contiguous; None unless QUANTIZED.
        k_scale, v_scale: fp32 [batch, HEADS, blocks], contiguous; None unless QUANTIZED.
        q_tokens, k_tokens: numbers of queries and keys; blocks = ceil(k_tokens / KEY_BLOCK).
        q_batch … v_stride: strides in elements.
        softmax_scale: log2(e) / sqrt(D).
        HEADS, D: number of heads, channels of each.
        BLOCK_M: queries of a program.
        BLOCK_N: keys per step; divides KEY_BLOCK.
        QUANTIZED: q, k and v are codes with scales.
        KEY_BLOCK: keys that share a scale.
        OFFSET: log2 of the largest P: log2(448) if QUANTIZED, otherwise 0.
        IMPRECISE: how many products of P V the tensor cores add up before the sum goes to fp32; None: all of them.

    Grid: (ceil(q_tokens / BLOCK_M), batch * HEADS).
    """
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // HEADS
    head = pair % HEADS
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.arange(0, D)
    inside = rows < q_tokens
    q_start = q + batch * q_batch + head * q_head
    q_tile = tl.load(
        q_start + rows.to(tl.int64)[:, None] * q_token + channels[None, :], mask=inside[:, None], other=0.0
    )
    k_start = k + batch * k_batch + head * k_head
    v_start = v + batch * v_batch + head * v_head
    blocks = tl.cdiv(k_tokens, KEY_BLOCK)
    row_scale = tl.full([BLOCK_M], 1.0, tl.float32) * softmax_scale
    v_before = 1.0
    k_scales = k_scale
    v_scales = v_scale
    if QUANTIZED:
        row_scale *= tl.load(q_scale + pair * q_tokens + rows, mask=inside, other=1.0)
        k_scales = k_scale + pair * blocks
        v_scales = v_scale + pair * blocks
        v_before = tl.load(v_scales)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    whole = k_tokens // BLOCK_N * BLOCK_N
    for start in tl.range(0, whole, BLOCK_N):
        acc, total, largest, v_before = attend(
            acc, total, largest, v_before, q_tile, row_scale, k_start, k_scales, k_token, v_start, v_scales,
            v_stride, start, k_tokens, channels, False, QUANTIZED, BLOCK_N, KEY_BLOCK, OFFSET, IMPRECISE,
        )  # fmt: skip
    if whole < k_tokens:
        acc, total, largest, v_before = attend(
            acc, total, largest, v_before, q_tile, row_scale, k_start, k_scales, k_token, v_start, v_scales,
            v_stride, whole, k_tokens, channels, True, QUANTIZED, BLOCK_N, KEY_BLOCK, OFFSET, IMPRECISE,
        )  # fmt: skip
    by = 1.0 / total
    if QUANTIZED:
        by = by * v_before
    to = out + ((batch * q_tokens + rows) * HEADS + head)[:, None] * D + channels[None, :]
    tl.store(to, (acc * by[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


TILES: dict[int, dict[tuple[bool, int], tuple[Tile, ...]]] = {
    # (whether 16-bit, head_dim): queries, keys, warps, stages. Hopper: two warpgroups of 64 queries each; or one, and
    # two programs at a time.
    90: {
        (True, 32): ((128, 128, 8, 3),),
        (True, 64): ((128, 128, 8, 3),),
        (True, 128): ((128, 64, 8, 3), (64, 64, 4, 3)),
        (False, 32): ((128, 128, 8, 3),),
        (False, 64): ((128, 128, 8, 3),),
        (False, 128): ((128, 128, 8, 3), (64, 128, 4, 3), (128, 64, 8, 3)),
    },
    # Ampere to Ada and consumer Blackwell: 100 KB of shared memory; registers hold the scores.
    80: {
        (True, 32): ((128, 64, 4, 3),),
        (True, 64): ((128, 64, 8, 3),),
        # With Triton 3.6 (PyTorch 2.11) the first spills 16 bytes, the second none.
        (True, 128): ((128, 32, 8, 3), (64, 32, 8, 3)),
        (False, 32): ((128, 64, 4, 3),),
        (False, 64): ((128, 64, 4, 3),),
        (False, 128): ((128, 64, 8, 3), (64, 64, 4, 3), (128, 32, 8, 3)),
    },
}
"""Oldest architecture → the tiles to measure; none spills on sm_89 or sm_90."""


def tiles(q: Tensor, arch: int) -> tuple[Tile, ...]:
    """The tiles to measure for q [batch, heads, tokens, head_dim]."""
    if q.dtype == torch.float32:  # for the interpreter and fp32 models: twice the bytes
        return ((64, 32, 8, 1),)
    return TILES[generation(arch)][q.dtype in FLOATS, q.shape[3]]


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises KontextError for operands that the kernel does not take."""
    require(q.ndim == k.ndim == v.ndim == 4, "attention takes [batch, heads, tokens, head_dim]")
    head_dim = q.shape[3]
    require(
        head_dim in HEAD_DIMS,
        f"attention takes heads of {', '.join(map(str, HEAD_DIMS))} channels, not {head_dim}",
    )
    require(
        q.shape[:2] == k.shape[:2] == v.shape[:2],
        f"q, k and v must have the same batch and heads, not {[list(x.shape[:2]) for x in (q, k, v)]}",
    )
    require(k.shape[2] > 0, "attention needs at least one key")
    quantized = q.dtype in (torch.float8_e4m3fn, torch.int8)
    require(
        q.dtype == k.dtype and (v.dtype == torch.float8_e4m3fn if quantized else v.dtype == q.dtype)
        and (quantized or q.dtype in FLOATS),
        "attention takes 16-bit or fp32 operands of one dtype, E4M3, or INT8 with E4M3 values, "
        f"not {q.dtype}, {k.dtype}, {v.dtype}",
    )  # fmt: skip


def plan_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    scales: tuple[Tensor, Tensor, Tensor] | None = None,
    fast: bool = True,
    arch: int = 0,
    tile: int = 0,
) -> Launch:
    """The launch; operands as in the references, `scales` are those of q, k and v.

    Args:
        fast: sum FP8 products in the tensor cores' own accumulators, which keep about 14 bits on Ada and Hopper;
            otherwise they are summed in fp32 after every block of keys.
        arch: compute capability, 90 for 9.0; 0 for that of the tensors' device.
        tile: index into `tiles`.
    """
    arch = arch or capability(q)
    check_attention(q, k, v)
    require_capability(arch)
    if scales is not None:
        require_fp8(arch, "FP8 attention needs", instead="16-bit attention")
    batch, heads, q_tokens, head_dim = q.shape
    m, n, warps, stages = tiles(q, arch)[tile]
    q_scale, k_scale, v_scale = scales or (None, None, None)
    return Launch(
        attention_kernel,
        (cdiv(q_tokens, m), batch * heads, 1),
        {
            "q": q,
            "k": k,
            "v": v,
            "out": out,
            "q_scale": q_scale,
            "k_scale": k_scale,
            "v_scale": v_scale,
            "q_tokens": q_tokens,
            "k_tokens": k.shape[2],
            "q_batch": q.stride(0),
            "q_head": q.stride(1),
            "q_token": q.stride(2),
            "k_batch": k.stride(0),
            "k_head": k.stride(1),
            "k_token": k.stride(2),
            "v_batch": v.stride(0),
            "v_head": v.stride(1),
            "v_stride": v.stride(2),
            "softmax_scale": math.log2(math.e) / math.sqrt(head_dim),
        },
        {
            "HEADS": heads,
            "D": head_dim,
            "BLOCK_M": m,
            "BLOCK_N": n,
            "QUANTIZED": scales is not None,
            "KEY_BLOCK": BLOCK,
            "OFFSET": FP8_OFFSET if scales is not None else 0.0,
            "IMPRECISE": None if fast else n,
        },
        warps=warps,
        stages=stages,
        varying=("q_tokens", "k_tokens"),
    )


def run_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    scales: tuple[Tensor, Tensor, Tensor] | None = None,
    fast: bool = True,
) -> None:
    """Attention into `out`, with the fastest tile."""

    def plan(tile: int) -> Launch:
        return plan_attention(q, k, v, out, scales, fast, tile=tile)

    sizes = "x".join(map(str, (*q.shape[:3], k.shape[2], q.shape[3])))
    key = f"attention {q.dtype} {sizes}{'' if fast else ' fp32 sums'}"
    fastest_tile(key, tiles(q, capability(q)), plan)


def empty_output(q: Tensor, dtype: torch.dtype) -> Tensor:
    """Empty [batch, tokens, heads * head_dim] for q [batch, heads, tokens, head_dim]."""
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1] * q.shape[3]), dtype=dtype)


def launch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_attention(q, k, v)
    require(
        q.stride(3) == k.stride(3) == v.stride(3) == 1,
        "attention takes heads of adjacent channels (stride 1)",
    )
    out = empty_output(q, q.dtype)
    run_attention(q, k, v, out)
    return out


def launch_attention_quantized(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    dtype: torch.dtype,
    fast: bool = True,
) -> Tensor:
    """`fast`: see `plan_attention`."""
    check_attention(q, k, v)
    out = empty_output(q, dtype)
    run_attention(q, k, v, out, (q_scale, k_scale, v_scale), fast)
    return out


def fake_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_attention(q, k, v)
    return empty_output(q, q.dtype)


def fake_attention_quantized(
    q: Tensor, q_scale: Tensor, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    check_attention(q, k, v)
    return empty_output(q, dtype)


attention_op = register_operator(
    "attention(Tensor q, Tensor k, Tensor v) -> Tensor", launch_attention, attention_reference, fake_attention
)

attention_quantized_op = register_operator(
    "attention_quantized(Tensor q, Tensor q_scale, Tensor k, Tensor k_scale, Tensor v, Tensor v_scale, "
    "ScalarType dtype) -> Tensor",
    launch_attention_quantized,
    attention_quantized_reference,
    fake_attention_quantized,
)
