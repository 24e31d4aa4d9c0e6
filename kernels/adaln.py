"""LayerNorm without affine, AdaLN's shift and scale, and quantization by token: one pass over the residual stream.

    y = (x - mean) / sqrt(var + 1e-6) * (1 + scale) + shift;   codes, s = quantize(y)

The row lies in registers from the load to the store, so device memory sees it once in and once out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch import Launch, jit, require, tl
from .numeric import quantize_rows
from .rows import empty_codes, plan_rows, row_constants, store_row

EPS = 1e-6
MAX_WIDTH = 16384
"""Channels of a row that still fit the registers of one program."""


def adaln_reference(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The plain meaning: x [batch, tokens, width], shift and scale [batch, width] → the dtype of x, computed in
    fp32."""
    y = F.layer_norm(x.float(), x.shape[-1:], eps=EPS)
    return (y * (1 + scale.float()[:, None]) + shift.float()[:, None]).to(x.dtype)


def adaln_quantize_reference(x: Tensor, shift: Tensor, scale: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """The plain meaning with `format` "fp8" or "int8": codes [batch, tokens, width] and fp32 scales [batch, tokens]."""
    y = F.layer_norm(x.float(), x.shape[-1:], eps=EPS)
    return quantize_rows(y * (1 + scale.float()[:, None]) + shift.float()[:, None], format)


@jit(do_not_specialize=["tokens"])
def adaln_kernel(  # type: ignore[no-untyped-def]
    x,
    shift,
    scale,
    out,
    out_scale,
    tokens,
    x_batch,
    x_token,
    modulation_batch,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    QUANTIZE: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    start = x + batch * x_batch + (row % tokens) * x_token
    value = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    # The modulation is the same for all rows of a picture: it comes from L2, and asked for here it is not waited for.
    modulation = batch * modulation_batch + columns
    by = tl.load(scale + modulation, mask=inside, other=0.0).to(tl.float32)
    to = tl.load(shift + modulation, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / WIDTH
    centered = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centered * centered, 0) / WIDTH
    y = centered * tl.rsqrt(variance + EPS) * (1.0 + by) + to
    store_row(y, row, columns, out, out_scale, WIDTH, QUANTIZE, INTEGER, LIMIT, MIN_AMAX)


def plan_adaln(
    x: Tensor, shift: Tensor, scale: Tensor, out: Tensor, out_scale: Tensor | None, format: str
) -> Launch:
    width = x.shape[2]
    require(width <= MAX_WIDTH, f"AdaLN takes up to {MAX_WIDTH} channels, not {width}")
    require(x.stride(2) == 1, "AdaLN takes rows whose channels lie next to each other")
    require(shift.stride() == scale.stride() and shift.stride(1) == 1, "shift and scale must lie alike")
    return plan_rows(
        adaln_kernel,
        tuple(x.shape),
        {
            "x": x,
            "shift": shift,
            "scale": scale,
            "out": out,
            "out_scale": out_scale,
            "tokens": x.shape[1],
            "x_batch": x.stride(0),
            "x_token": x.stride(1),
            "modulation_batch": shift.stride(0),
        },
        {"WIDTH": width, "EPS": EPS, **row_constants(out_scale, format)},
    )


def launch_adaln(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        plan_adaln(x, shift, scale, out, None, "").run()
    return out


def launch_adaln_quantize(x: Tensor, shift: Tensor, scale: Tensor, format: str) -> tuple[Tensor, Tensor]:
    out, out_scale = empty_codes(x, tuple(x.shape), format)
    if out.numel():
        plan_adaln(x, shift, scale, out, out_scale, format).run()
    return out, out_scale


adaln_op = torch.library.custom_op(
    "kontext::adaln",
    launch_adaln,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor shift, Tensor scale) -> Tensor",
)
adaln_op.register_kernel("cpu")(adaln_reference)
adaln_op.register_fake(lambda x, shift, scale: x.new_empty(x.shape))

adaln_quantize_op = torch.library.custom_op(
    "kontext::adaln_quantize",
    launch_adaln_quantize,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor shift, Tensor scale, str format) -> (Tensor, Tensor)",
)
adaln_quantize_op.register_kernel("cpu")(adaln_quantize_reference)
adaln_quantize_op.register_fake(lambda x, shift, scale, format: empty_codes(x, x.shape, format))
