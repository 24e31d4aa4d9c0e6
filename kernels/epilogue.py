"""The epilogue of matrix products: bias, and then nothing, or GELU and quantization, or gate and residual.

    out = product + bias
    out = quantize(gelu(product + bias), out_scale)
    out += gate * (product + bias)                                clipped to ±65504 if out is in fp16

Outputs are strided [batch, tokens, channels] views, so the products of text and image are written side by side into one
joint buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .launch import Launch, cdiv, jit, require, tl
from .numeric import CODES, LIMITS, clip_to_fp16, encode, gelu, gelu_tile, residual_sum

PLAIN, GELU, RESIDUAL = 0, 1, 2
"""The kinds of epilogue, in the order of the formulas above; EPILOGUE in kernels."""


class Epilogue(NamedTuple):
    """A product's output and the epilogue's operands.

    Args:
        out: [batch, tokens, channels], strides (any, any, 1); added to if there is a gate.
        bias: [channels].
        gate: [batch, channels].
        out_scale: fp32 [1], the scale of the output's codes, after GELU; not together with a gate.
    """

    out: Tensor
    bias: Tensor | None = None
    gate: Tensor | None = None
    out_scale: Tensor | None = None

    @property
    def kind(self) -> int:
        if self.gate is not None:
            return RESIDUAL
        return GELU if self.out_scale is not None else PLAIN

    @property
    def name(self) -> str:
        return ("plain", "gelu", "residual")[self.kind]

    @property
    def format(self) -> str:
        """The format of the output's codes, "fp8" or "int8"; "" if the output is not codes."""
        return next((name for name, dtype in CODES.items() if dtype == self.out.dtype), "")

    @property
    def accumulates_into(self) -> Tensor | None:
        """The output, if every run adds to it."""
        return None if self.gate is None else self.out

    def check(self, rows: tuple[int, ...], channels: int) -> None:
        """Raises KontextError unless `out` can take a product of [*rows, channels]."""
        out, expected = self.out, [*rows, channels]
        require(
            self.gate is None or self.out_scale is None, "a product takes a gate or an output scale, not both"
        )
        require(
            list(out.shape) == expected,
            f"the output must be {expected}, like the product, not {list(out.shape)}",
        )
        require(out.stride(2) == 1, "the output's channels must be adjacent (stride 1)")
        require(
            bool(self.format) == (self.out_scale is not None),
            f"an output in {out.dtype} takes {'an' if self.format else 'no'} output scale",
        )


def finish_reference(product: Tensor, epilogue: Epilogue) -> None:
    """Reference implementation in PyTorch: product fp32 [batch, tokens, channels] → `epilogue.out`, rounded once."""
    out, bias, gate, out_scale = epilogue
    if bias is not None:
        product = product + bias.float()
    if gate is not None:
        out.copy_(residual_sum(out, gate, product))
    elif out_scale is not None:
        out.copy_(encode(gelu(product) / out_scale, epilogue.format))
    else:
        out.copy_(product)


def plan_product(
    kernel: Any,
    tile: tuple[int, int, int, int],
    operands: Mapping[str, Tensor | None],
    constants: Mapping[str, Any],
    epilogue: Epilogue,
    pieces: int = 0,
) -> Launch:
    """The launch of a product with one program per tile of one batch item's output.

    Args:
        tile: rows, columns, warps, stages.
        operands: the kernel's own arguments, before those of the epilogue.
        constants: the kernel's own.
        epilogue: output and operands.
        pieces: in which a tile is stored, see `finish_split`; 0: 4 for residuals of more than 128 columns, otherwise 1.
    """
    out, bias, gate, out_scale = epilogue
    (batch, tokens, channels), (m, n, warps, stages) = out.shape, tile
    return Launch(
        kernel,
        (cdiv(tokens, m) * cdiv(channels, n), batch, 1),
        {
            **operands,
            "out": out,
            "bias": bias,
            "gate": gate,
            "out_scale": out_scale,
            "tokens": tokens,
            "out_batch": out.stride(0),
            "out_token": out.stride(1),
            "gate_batch": gate.stride(0) if gate is not None else 0,
        },
        {
            "N": channels,
            "BLOCK_M": m,
            "BLOCK_N": n,
            "GROUP_M": 8,
            "PIECES": pieces or (4 if gate is not None and n > 128 else 1),
            "EPILOGUE": epilogue.kind,
            "BIAS": bias is not None,
            "LIMIT": LIMITS.get(epilogue.format, 0.0),
            "INTEGER": epilogue.format == "int8",
            **constants,
        },
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
    """Applies the epilogue to a tile of products and stores it.

    Parameters:
        acc: products, fp32 [rows, columns of the tile].
        rows, columns: int32 indices into tokens and channels; those beyond the end are not stored.
        batch: int64, the batch item.
        tokens, N: rows and channels of the output.
        out: output [batch, tokens, N], strides (out_batch, out_token, 1); fp32 or 16-bit, or codes if EPILOGUE is 1.
        bias: [N]; None unless BIAS.
        gate: [batch, N], strides (gate_batch, 1); None unless EPILOGUE is 2.
        out_scale: fp32 [1]; None unless EPILOGUE is 1.
        out_batch, out_token, gate_batch: strides in elements.
        EPILOGUE: 0: nothing (PLAIN), 1: GELU and quantization (GELU), 2: gate and residual (RESIDUAL).
        BIAS: add `bias`.
        LIMIT: the largest code, 448 or 127, if EPILOGUE is 1.
        INTEGER: codes are INT8; otherwise E4M3.
    """
    within = columns < N
    if BIAS:
        acc += tl.load(bias + columns, mask=within, other=0.0).to(tl.float32)[None, :]
    at = out + batch * out_batch + (rows[:, None] * out_token + columns[None, :])
    inside = (rows < tokens)[:, None] & within[None, :]
    if EPILOGUE == 2:
        by = tl.load(gate + batch * gate_batch + columns, mask=within, other=0.0).to(tl.float32)
        acc = tl.load(at, mask=inside, other=0.0).to(tl.float32) + by[None, :] * acc
        acc = clip_to_fp16(acc, out.dtype.element_ty)
        tl.store(at, acc.to(out.dtype.element_ty), mask=inside)
    elif EPILOGUE == 1:
        acc = tl.minimum(tl.maximum(gelu_tile(acc) / tl.load(out_scale), -LIMIT), LIMIT)
        if INTEGER:  # rounds, see `numeric.quantize_tile`
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
    """`finish_tile` in pieces: beside 256 columns of sums, a whole tile of the residual does not fit the registers.

    Parameters:
        acc: products, fp32 [BLOCK_M, BLOCK_N].
        column: the tile's first column.
        PIECES: 1, 2 or 4 ranges of columns.
        all others: as in `finish_tile`.
    """
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
    """Row and column of a program's tile, in tiles.

    Consecutive programs compute GROUP_M tiles below each other before they move along the columns, so that operands are
    read again from L2 (Triton's matrix multiplication tutorial).
    """
    down = tl.cdiv(rows, BLOCK_M)
    across = tl.cdiv(N, BLOCK_N)
    group = program // (GROUP_M * across)
    height = tl.minimum(down - group * GROUP_M, GROUP_M)
    within = program % (GROUP_M * across)
    return group * GROUP_M + within % height, within // height


def rows_of(x: Tensor) -> int:
    """Rows of [batch, tokens, channels].

    Raises:
        KontextError: the rows are not contiguous.
    """
    require(
        x.ndim == 3 and x.is_contiguous(),
        f"a product's input must be contiguous [batch, tokens, channels], not {list(x.shape)}",
    )
    return x.shape[0] * x.shape[1]
