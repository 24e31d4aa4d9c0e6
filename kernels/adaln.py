"""LayerNorm without affine parameters, AdaLN's shift and scale, and quantization per token, in one pass.

    y = (x - mean) / sqrt(variance + 1e-6) * (1 + scale) + shift;   codes, s = quantize(y)

A row stays in registers from the load to the store, so each is read and written once. Source: AdaLN of DiT (Peebles and
Xie 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import check_block_scale
from .launch import Launch, jit, require, tl
from .operators import register_operator
from .rows import empty_codes, plan_rows, program_row, quantize, row_arguments, row_constants, store_row

EPS = 1e-6
MAX_WIDTH = 16384
"""Channels of a row that still fit the registers of one program."""


def normalize_and_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """fp32 LayerNorm, scaled and shifted; x [batch, tokens, width], shift and scale [batch, width]."""
    y = F.layer_norm(x.float(), x.shape[-1:], eps=EPS)
    return y * (1 + scale.float()[:, None]) + shift.float()[:, None]


def adaln_reference(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Reference implementation in PyTorch.

    Args:
        x: [batch, tokens, width].
        shift, scale: [batch, width].

    Returns:
        [batch, tokens, width] in the dtype of x, computed in fp32.
    """
    return normalize_and_modulate(x, shift, scale).to(x.dtype)


def adaln_quantize_reference(
    x: Tensor, shift: Tensor, scale: Tensor, format: str, block_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Reference implementation in PyTorch, with `format` "fp8" or "int8": codes [batch, tokens, width] and fp32 scales
    [batch, tokens]; or with "nvfp4" and the scale of all inputs, fp32 [1]: as `blocks.quantize_blocks`."""
    return quantize(normalize_and_modulate(x, shift, scale), format, block_scale)


@jit(do_not_specialize=["tokens"])
def adaln_kernel(  # type: ignore[no-untyped-def]
    x,
    shift,
    scale,
    out,
    out_scale,
    block_scale,
    tokens,
    x_batch,
    x_token,
    modulation_batch,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """One program per row.

    Parameters:
        x: [batch, tokens, WIDTH], strides (x_batch, x_token, 1).
        shift, scale: [batch, WIDTH], strides (modulation_batch, 1).
        out: output [batch, tokens, WIDTH], contiguous, in the dtype of x, or codes if QUANTIZE.
        out_scale: output fp32 [batch, tokens]; None unless QUANTIZE.
        block_scale: fp32 [1]; None unless BLOCKS.
        tokens: rows of each batch item.
        x_batch, x_token, modulation_batch: strides in elements.
        WIDTH: channels.
        BLOCK: WIDTH rounded up to a power of two, see `rows.plan_rows`.
        EPS: added to the variance.
        QUANTIZE, BLOCKS, INTEGER, LIMIT, MIN_AMAX: see `rows.store_row`.

    Grid: (batch * tokens).
    """
    row, batch, token = program_row(tokens)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    # All rows of an image share the modulation, so it is in L2; loaded this early, its latency is hidden.
    modulation = batch * modulation_batch + columns
    by = tl.load(scale + modulation, mask=inside, other=0.0).to(tl.float32)
    to = tl.load(shift + modulation, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / WIDTH
    centered = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centered * centered, 0) / WIDTH
    y = centered * tl.rsqrt(variance + EPS) * (1.0 + by) + to
    store_row(
        y, row, columns, out, out_scale, block_scale, tokens, WIDTH, BLOCK, QUANTIZE, BLOCKS, INTEGER, LIMIT, MIN_AMAX
    )  # fmt: skip


def plan_adaln(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    out: Tensor,
    out_scale: Tensor | None,
    format: str,
    block_scale: Tensor | None = None,
) -> Launch:
    """The launch; operands as in `adaln_quantize_reference`, results are written into `out` and `out_scale`.

    `format` is "" if `out_scale` is None.

    Raises:
        KontextError: shapes or strides that the kernel does not take.
    """
    width = x.shape[2]
    require(width <= MAX_WIDTH, f"AdaLN takes up to {MAX_WIDTH} channels, not {width}")
    check_block_scale(format, block_scale)
    require(x.stride(2) == 1, "AdaLN takes rows of adjacent channels (stride 1)")
    require(
        shift.stride() == scale.stride() and shift.stride(1) == 1,
        f"AdaLN's shift and scale must have the same strides (N, 1), not {shift.stride()} and {scale.stride()}",
    )
    return plan_rows(
        adaln_kernel,
        tuple(x.shape),
        {
            "x": x,
            "shift": shift,
            "scale": scale,
            "out": out,
            "out_scale": out_scale,
            "block_scale": block_scale,
            **row_arguments(x.shape[1], x=x),
            "modulation_batch": shift.stride(0),
        },
        {"WIDTH": width, "EPS": EPS, **row_constants(out_scale, format)},
    )


def launch_adaln(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    plan_adaln(x, shift, scale, out, None, "").run()
    return out


def launch_adaln_quantize(
    x: Tensor, shift: Tensor, scale: Tensor, format: str, block_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    out, out_scale = empty_codes(x, tuple(x.shape), format)
    plan_adaln(x, shift, scale, out, out_scale, format, block_scale).run()
    return out, out_scale


adaln_op = register_operator(
    "adaln(Tensor x, Tensor shift, Tensor scale) -> Tensor",
    launch_adaln,
    adaln_reference,
    lambda x, shift, scale: x.new_empty(x.shape),
)

adaln_quantize_op = register_operator(
    "adaln_quantize(Tensor x, Tensor shift, Tensor scale, str format, Tensor? block_scale=None) -> (Tensor, Tensor)",
    launch_adaln_quantize,
    adaln_quantize_reference,
    lambda x, shift, scale, format, block_scale=None: empty_codes(x, x.shape, format),
)
