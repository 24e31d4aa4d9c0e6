"""What a matrix product does on its way to memory: bias, then one of nothing, GELU and quantization, or gate and
residual.

    out = product + bias;   out = quantize(gelu(product + bias), out_scale);   out += gate * (product + bias)

Outputs are [batch, tokens, channels] views with strides of their own, so the text's and the picture's products land
side by side in one joint buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .launch import Launch, cdiv, jit, require, tl
from .numeric import CODES, LIMITS, encode, gelu, gelu_tile

PLAIN, GELU, RESIDUAL = 0, 1, 2


def kind(gate: Tensor | None, out_scale: Tensor | None) -> int:
    require(gate is None or out_scale is None, "a product has a gate or a scale of its output, not both")
    if gate is not None:
        return RESIDUAL
    return GELU if out_scale is not None else PLAIN


def ending(gate: Tensor | None, out_scale: Tensor | None) -> str:
    """An epilogue's name."""
    return ("plain", "gelu", "residual")[kind(gate, out_scale)]


def check_output(out: Tensor, rows: tuple[int, ...], channels: int, out_scale: Tensor | None) -> None:
    """Raises KontextError unless `out` can take a product of [*rows, channels]."""
    expected = [*rows, channels]
    require(list(out.shape) == expected, f"an output of {list(out.shape)} for a product of {expected}")
    require(out.stride(2) == 1, "an output's channels must lie next to each other")
    coded = out.dtype in CODES.values()
    require(
        coded == (out_scale is not None), f"an output in {out.dtype} goes with a scale, and no other does"
    )


def finish_reference(
    out: Tensor, product: Tensor, bias: Tensor | None, gate: Tensor | None, out_scale: Tensor | None
) -> None:
    """The plain meaning: product fp32 [batch, tokens, channels] into `out`, rounded once."""
    if bias is not None:
        product = product + bias.float()
    if gate is not None:
        out.copy_(out.float() + gate.float()[:, None] * product)
    elif out_scale is not None:
        format = next(name for name, dtype in CODES.items() if dtype == out.dtype)
        out.copy_(encode(gelu(product) / out_scale, format))
    else:
        out.copy_(product)


def constants(
    out: Tensor, bias: Tensor | None, gate: Tensor | None, out_scale: Tensor | None, columns: int
) -> dict[str, object]:
    """For tiles of so many columns."""
    format = next((name for name, dtype in CODES.items() if dtype == out.dtype), "")
    return {
        "PIECES": 4 if gate is not None and columns > 128 else 1,
        "EPILOGUE": kind(gate, out_scale),
        "BIAS": bias is not None,
        "LIMIT": LIMITS.get(format, 0.0),
        "INTEGER": format == "int8",
    }


def arguments(
    out: Tensor, bias: Tensor | None, gate: Tensor | None, out_scale: Tensor | None
) -> dict[str, Tensor | int | None]:
    return {
        "out": out,
        "bias": bias,
        "gate": gate,
        "out_scale": out_scale,
        "tokens": out.shape[1],
        "out_batch": out.stride(0),
        "out_token": out.stride(1),
        "gate_batch": gate.stride(0) if gate is not None else 0,
    }


def plan_product(
    kernel: Any,
    tile: tuple[int, int, int, int],
    operands: Mapping[str, Tensor | None],
    of_product: Mapping[str, Any],
    ending: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
) -> Launch:
    """The launch of a product: one program a tile of one picture's output.

    Args:
        tile: rows, columns, warps, stages.
        operands: the kernel's first arguments.
        of_product: constants beside the sizes of the output and of the tile, or in the place of `constants`.
        ending: out, bias, gate and out_scale.
    """
    (batch, tokens, channels), (m, n, warps, stages) = ending[0].shape, tile
    sizes = {"N": channels, "BLOCK_M": m, "BLOCK_N": n, "GROUP_M": 8}
    return Launch(
        kernel,
        (cdiv(tokens, m) * cdiv(channels, n), batch, 1),
        {**operands, **arguments(*ending)},
        {**sizes, **constants(*ending, n), **of_product},
        warps=warps,
        stages=stages,
        varying=("tokens",),
    )


@jit()
def finish_tile(  # type: ignore[no-untyped-def]
    acc,
    rows,
    columns,
    batch,
    tokens,
    N,
    out,
    bias,
    gate,
    out_scale,
    out_batch,
    out_token,
    gate_batch,
    EPILOGUE: tl.constexpr,
    BIAS: tl.constexpr,
    LIMIT: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """Stores a tile of products of one picture: acc fp32 [BLOCK_M, BLOCK_N] of the given rows and columns."""
    within = columns < N
    if BIAS:
        acc += tl.load(bias + columns, mask=within, other=0.0).to(tl.float32)[None, :]
    at = out + batch * out_batch + (rows[:, None] * out_token + columns[None, :])
    inside = (rows < tokens)[:, None] & within[None, :]
    if EPILOGUE == 2:
        by = tl.load(gate + batch * gate_batch + columns, mask=within, other=0.0).to(tl.float32)
        acc = tl.load(at, mask=inside, other=0.0).to(tl.float32) + by[None, :] * acc
        tl.store(at, acc.to(out.dtype.element_ty), mask=inside)
    elif EPILOGUE == 1:
        acc = tl.minimum(tl.maximum(gelu_tile(acc) / tl.load(out_scale), -LIMIT), LIMIT)
        if INTEGER:
            acc = (acc + 12582912.0) - 12582912.0
        tl.store(at, acc.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(at, acc.to(out.dtype.element_ty), mask=inside)


@jit()
def finish_split(  # type: ignore[no-untyped-def]
    acc,
    rows,
    column,
    batch,
    tokens,
    N,
    out,
    bias,
    gate,
    out_scale,
    out_batch,
    out_token,
    gate_batch,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PIECES: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BIAS: tl.constexpr,
    LIMIT: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """`finish_tile` of the columns from `column` on, in 1, 2 or 4 pieces: beside 256 columns of sums, a whole tile
    of the residual does not fit the registers."""
    if PIECES == 1:
        finish_tile(
            acc, rows, column + tl.arange(0, BLOCK_N), batch, tokens, N, out, bias, gate, out_scale, out_batch,
            out_token, gate_batch, EPILOGUE, BIAS, LIMIT, INTEGER,
        )  # fmt: skip
    else:
        left, right = tl.split(tl.permute(tl.reshape(acc, [BLOCK_M, 2, BLOCK_N // 2]), (0, 2, 1)))
        finish_split(
            left, rows, column, batch, tokens, N, out, bias, gate, out_scale, out_batch, out_token, gate_batch,
            BLOCK_M, BLOCK_N // 2, PIECES // 2, EPILOGUE, BIAS, LIMIT, INTEGER,
        )  # fmt: skip
        finish_split(
            right, rows, column + BLOCK_N // 2, batch, tokens, N, out, bias, gate, out_scale, out_batch, out_token,
            gate_batch, BLOCK_M, BLOCK_N // 2, PIECES // 2, EPILOGUE, BIAS, LIMIT, INTEGER,
        )  # fmt: skip


@jit()
def tile_of(  # type: ignore[no-untyped-def]
    program, rows, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr
):
    """Row and column of a program's tile: GROUP_M tiles of rows go along the columns together, for L2's sake."""
    down = tl.cdiv(rows, BLOCK_M)
    across = tl.cdiv(N, BLOCK_N)
    group = program // (GROUP_M * across)
    height = tl.minimum(down - group * GROUP_M, GROUP_M)
    within = program % (GROUP_M * across)
    return group * GROUP_M + within % height, within // height


def rows_of(x: Tensor) -> int:
    """Rows of [batch, tokens, channels]; raises KontextError unless they lie one after the other."""
    require(
        x.ndim == 3 and x.is_contiguous(), "a product's input must be contiguous [batch, tokens, channels]"
    )
    return x.shape[0] * x.shape[1]
