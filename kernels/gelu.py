"""What a linear's input is made of: values as they are, values through GELU (tanh), side by side, quantized by token.

    y = concat(plain, gelu(mlp));   codes, s = quantize(y - mean)

One kernel for the attention's output (plain alone), the MLP's middle (mlp alone) and the single block's second linear
(both): there, the concatenation costs no pass of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Launch, jit, require, tl
from .numeric import gelu, gelu_tile, quantize_rows
from .rows import empty_codes, plan_rows, row_constants, store_row

MAX_WIDTH = 32768


def joined(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    """concat(plain, gelu(mlp)) in fp32; either may be None, not both."""
    parts = [] if plain is None else [plain.float()]
    if mlp is not None:
        parts.append(gelu(mlp.float()))
    require(bool(parts), "there is nothing to join")
    return torch.cat(parts, dim=-1)


def gelu_join_reference(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    """The plain meaning: [batch, tokens, plain + mlp channels] in the inputs' dtype."""
    first = plain if plain is not None else mlp
    return joined(plain, mlp).to(first.dtype if first is not None else torch.float32)


def gelu_join_quantize_reference(
    plain: Tensor | None, mlp: Tensor | None, format: str, mean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The plain meaning with `format` "fp8" or "int8": codes and fp32 scales [batch, tokens], of the channels less
    their `mean` [plain + mlp channels]."""
    y = joined(plain, mlp)
    return quantize_rows(y if mean is None else y - mean.float(), format)


@jit(do_not_specialize=["tokens"])
def gelu_join_kernel(  # type: ignore[no-untyped-def]
    plain,
    mlp,
    mean,
    out,
    out_scale,
    tokens,
    plain_batch,
    plain_token,
    mlp_batch,
    mlp_token,
    PLAIN: tl.constexpr,
    MLP: tl.constexpr,
    CENTRED: tl.constexpr,
    BLOCK: tl.constexpr,
    QUANTIZE: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    token = row % tokens
    columns = tl.arange(0, BLOCK)
    y = tl.zeros([BLOCK], tl.float32)
    if PLAIN > 0:
        start = plain + batch * plain_batch + token * plain_token
        y = tl.load(start + columns, mask=columns < PLAIN, other=0.0).to(tl.float32)
    if MLP > 0:
        start = mlp + batch * mlp_batch + token * mlp_token
        from_mlp = (columns < PLAIN + MLP) & (columns >= PLAIN)
        y += gelu_tile(tl.load(start + (columns - PLAIN), mask=from_mlp, other=0.0).to(tl.float32))
    if CENTRED:
        y -= tl.load(mean + columns, mask=columns < PLAIN + MLP, other=0.0).to(tl.float32)
    store_row(y, row, columns, out, out_scale, PLAIN + MLP, QUANTIZE, INTEGER, LIMIT, MIN_AMAX)


def plan_gelu_join(
    plain: Tensor | None,
    mlp: Tensor | None,
    out: Tensor,
    out_scale: Tensor | None,
    format: str,
    mean: Tensor | None = None,
) -> Launch:
    width = out.shape[2]
    require(
        mean is None or tuple(mean.shape) == (width,), f"the mean of {width} channels has as many numbers"
    )
    require(width <= MAX_WIDTH, f"GELU with quantization takes up to {MAX_WIDTH} channels, not {width}")
    for part in (plain, mlp):
        require(part is None or part.stride(2) == 1, "GELU takes rows whose channels lie next to each other")
    return plan_rows(
        gelu_join_kernel,
        tuple(out.shape),
        {
            "plain": plain,
            "mlp": mlp,
            "mean": mean,
            "out": out,
            "out_scale": out_scale,
            "tokens": out.shape[1],
            "plain_batch": plain.stride(0) if plain is not None else 0,
            "plain_token": plain.stride(1) if plain is not None else 0,
            "mlp_batch": mlp.stride(0) if mlp is not None else 0,
            "mlp_token": mlp.stride(1) if mlp is not None else 0,
        },
        {
            "PLAIN": plain.shape[2] if plain is not None else 0,
            "MLP": mlp.shape[2] if mlp is not None else 0,
            "CENTRED": mean is not None,
            **row_constants(out_scale, format),
        },
    )


def shape_of(plain: Tensor | None, mlp: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor that decides device and dtype, and the output's shape."""
    given = [part for part in (plain, mlp) if part is not None]
    require(bool(given), "there is nothing to join")
    return given[0], (*given[0].shape[:2], sum(part.shape[2] for part in given))


def launch_gelu_join(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    first, shape = shape_of(plain, mlp)
    out = torch.empty(shape, dtype=first.dtype, device=first.device)
    if out.numel():
        plan_gelu_join(plain, mlp, out, None, "").run()
    return out


def launch_gelu_join_quantize(
    plain: Tensor | None, mlp: Tensor | None, format: str, mean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    first, shape = shape_of(plain, mlp)
    out, out_scale = empty_codes(first, shape, format)
    if out.numel():
        plan_gelu_join(plain, mlp, out, out_scale, format, mean).run()
    return out, out_scale


gelu_join_op = torch.library.custom_op(
    "kontext::gelu_join",
    launch_gelu_join,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor? plain, Tensor? mlp) -> Tensor",
)
gelu_join_op.register_kernel("cpu")(gelu_join_reference)


@gelu_join_op.register_fake
def _(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    first, shape = shape_of(plain, mlp)
    return first.new_empty(shape)


gelu_join_quantize_op = torch.library.custom_op(
    "kontext::gelu_join_quantize",
    launch_gelu_join_quantize,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor? plain, Tensor? mlp, str format, Tensor? mean=None) -> (Tensor, Tensor)",
)
gelu_join_quantize_op.register_kernel("cpu")(gelu_join_quantize_reference)
gelu_join_quantize_op.register_fake(
    lambda plain, mlp, format, mean=None: empty_codes(*shape_of(plain, mlp), format)
)
