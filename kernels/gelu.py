"""Builds a linear's input: values, GELU (tanh) of values, or both side by side; rounded, or quantized per token.

    y = concat(plain, gelu(mlp));   codes, s = quantize(y - mean)

One kernel serves the attention's output (plain alone), the MLP's hidden layer (mlp alone) and the single block's second
linear (both), whose concatenation then needs no extra pass. Source: GELU (Hendrycks and Gimpel 2016).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import check_block_scale
from .launch import Launch, jit, require, tl
from .numeric import gelu, gelu_tile
from .operators import register_operator
from .rows import empty_codes, plan_rows, program_row, quantize, row_arguments, row_constants, store_row

MAX_WIDTH = 32768
"""Channels of a row that still fit the registers of one program."""


def join(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    """concat(plain, gelu(mlp)) in fp32; either may be None, not both."""
    shape_of(plain, mlp)
    parts = [] if plain is None else [plain.float()]
    if mlp is not None:
        parts.append(gelu(mlp.float()))
    return torch.cat(parts, dim=-1)


def gelu_join_reference(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    """Reference implementation in PyTorch.

    Args:
        plain, mlp: [batch, tokens, channels of each]; either may be None, not both.

    Returns:
        [batch, tokens, plain + mlp channels] in the inputs' dtype, computed in fp32.
    """
    first, _ = shape_of(plain, mlp)
    return join(plain, mlp).to(first.dtype)


def gelu_join_quantize_reference(
    plain: Tensor | None,
    mlp: Tensor | None,
    format: str,
    mean: Tensor | None = None,
    block_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference implementation in PyTorch, with `format` "fp8" or "int8"; or "nvfp4" and the scale of all inputs, fp32
    [1].

    `mean` [plain + mlp channels] is subtracted first.

    Returns:
        Codes [batch, tokens, plain + mlp channels] and fp32 scales [batch, tokens]; of NVFP4 as
        `blocks.quantize_blocks`.
    """
    y = join(plain, mlp)
    return quantize(y if mean is None else y - mean.float(), format, block_scale)


@jit(do_not_specialize=["tokens"])
def gelu_join_kernel(  # type: ignore[no-untyped-def]
    plain,
    mlp,
    mean,
    out,
    out_scale,
    block_scale,
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
    BLOCKS: tl.constexpr,
    INTEGER: tl.constexpr,
    LIMIT: tl.constexpr,
    MIN_AMAX: tl.constexpr,
):
    """One program per row.

    Parameters:
        plain: [batch, tokens, PLAIN], strides (plain_batch, plain_token, 1); None if PLAIN is 0.
        mlp: [batch, tokens, MLP], strides (mlp_batch, mlp_token, 1); None if MLP is 0.
        mean: [PLAIN + MLP]; None unless CENTRED.
        out: output [batch, tokens, PLAIN + MLP], contiguous, in the inputs' dtype, or codes if QUANTIZE.
        out_scale: output fp32 [batch, tokens]; None unless QUANTIZE.
        block_scale: fp32 [1]; None unless BLOCKS.
        tokens: rows of each batch item.
        plain_batch, plain_token, mlp_batch, mlp_token: strides in elements.
        PLAIN, MLP: channels of each part; 0 if there is none.
        CENTRED: subtract `mean`.
        BLOCK: PLAIN + MLP rounded up to a power of two, see `rows.plan_rows`.
        QUANTIZE, BLOCKS, INTEGER, LIMIT, MIN_AMAX: see `rows.store_row`.

    Grid: (batch * tokens).
    """
    row, batch, token = program_row(tokens)
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
    store_row(
        y, row, columns, out, out_scale, block_scale, tokens, PLAIN + MLP, BLOCK, QUANTIZE, BLOCKS, INTEGER, LIMIT,
        MIN_AMAX,
    )  # fmt: skip


def plan_gelu_join(
    plain: Tensor | None,
    mlp: Tensor | None,
    out: Tensor,
    out_scale: Tensor | None,
    format: str,
    mean: Tensor | None = None,
    block_scale: Tensor | None = None,
) -> Launch:
    """The launch; operands as in `gelu_join_quantize_reference`, results are written into `out` and `out_scale`.

    `format` is "" if `out_scale` is None.

    Raises:
        KontextError: shapes or strides that the kernel does not take.
    """
    width = sum(part.shape[2] for part in (plain, mlp) if part is not None)
    require(
        mean is None or tuple(mean.shape) == (width,),
        f"the mean must have a number for each of {width} channels, not {[] if mean is None else list(mean.shape)}",
    )
    check_block_scale(format, block_scale)
    require(width <= MAX_WIDTH, f"GELU takes up to {MAX_WIDTH} channels, not {width}")
    for part in (plain, mlp):
        require(part is None or part.stride(2) == 1, "GELU takes rows of adjacent channels (stride 1)")
    return plan_rows(
        gelu_join_kernel,
        (*out.shape[:2], width),
        {
            "plain": plain,
            "mlp": mlp,
            "mean": mean,
            "out": out,
            "out_scale": out_scale,
            "block_scale": block_scale,
            **row_arguments(out.shape[1], plain=plain, mlp=mlp),
        },
        {
            "PLAIN": plain.shape[2] if plain is not None else 0,
            "MLP": mlp.shape[2] if mlp is not None else 0,
            "CENTRED": mean is not None,
            **row_constants(out_scale, format),
        },
    )


def shape_of(plain: Tensor | None, mlp: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor whose device and dtype the output has, and the output's shape.

    Raises:
        KontextError: both are None.
    """
    parts = [part for part in (plain, mlp) if part is not None]
    require(bool(parts), "gelu_join needs plain, mlp or both, not neither")
    return parts[0], (*parts[0].shape[:2], sum(part.shape[2] for part in parts))


def empty_joined(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    first, shape = shape_of(plain, mlp)
    return first.new_empty(shape)


def launch_gelu_join(plain: Tensor | None, mlp: Tensor | None) -> Tensor:
    out = empty_joined(plain, mlp)
    plan_gelu_join(plain, mlp, out, None, "").run()
    return out


def launch_gelu_join_quantize(
    plain: Tensor | None,
    mlp: Tensor | None,
    format: str,
    mean: Tensor | None = None,
    block_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    out, out_scale = empty_codes(*shape_of(plain, mlp), format)
    plan_gelu_join(plain, mlp, out, out_scale, format, mean, block_scale).run()
    return out, out_scale


gelu_join_op = register_operator(
    "gelu_join(Tensor? plain, Tensor? mlp) -> Tensor", launch_gelu_join, gelu_join_reference, empty_joined
)

gelu_join_quantize_op = register_operator(
    "gelu_join_quantize(Tensor? plain, Tensor? mlp, str format, Tensor? mean=None, Tensor? block_scale=None) -> "
    "(Tensor, Tensor)",
    launch_gelu_join_quantize,
    gelu_join_quantize_reference,
    lambda plain, mlp, format, mean=None, block_scale=None: empty_codes(*shape_of(plain, mlp), format),
)
