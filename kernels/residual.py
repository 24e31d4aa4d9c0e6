"""Gate and residual in place, for products whose kernel has no such epilogue (cuBLAS).

x += gate * y                                                 clipped to ±65504 if x is in fp16
"""

from __future__ import annotations

from torch import Tensor

from .launch import Launch, jit, require, tl
from .numeric import clip_to_fp16, residual_sum
from .operators import register_operator
from .rows import plan_rows, program_row, row_arguments


def gate_residual_reference(x: Tensor, gate: Tensor, y: Tensor) -> None:
    """Reference implementation in PyTorch, in place: x, y [batch, tokens, width], gate [batch, width].

    Computed in fp32, and the sum is rounded once.
    """
    x.copy_(residual_sum(x, gate, y))


@jit(do_not_specialize=["tokens"])
def gate_residual_kernel(  # type: ignore[no-untyped-def]
    x,
    gate,
    y,
    tokens,
    x_batch,
    x_token,
    y_batch,
    y_token,
    gate_batch,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row.

    Parameters:
        x: [batch, tokens, WIDTH], strides (x_batch, x_token, 1); read and written.
        gate: [batch, WIDTH], strides (gate_batch, 1).
        y: [batch, tokens, WIDTH], strides (y_batch, y_token, 1).
        tokens: rows of each batch item.
        x_batch, x_token, y_batch, y_token, gate_batch: strides in elements.
        WIDTH: channels.
        BLOCK: WIDTH rounded up to a power of two.

    Grid: (batch * tokens).
    """
    _, batch, token = program_row(tokens)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = x + batch * x_batch + token * x_token + columns
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(y + batch * y_batch + token * y_token + columns, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(gate + batch * gate_batch + columns, mask=inside, other=0.0).to(tl.float32)
    total = clip_to_fp16(value + by * added, x.dtype.element_ty)
    tl.store(at, total.to(x.dtype.element_ty), mask=inside)


def plan_gate_residual(x: Tensor, gate: Tensor, y: Tensor) -> Launch:
    """The launch; operands as in `gate_residual_reference`.

    Raises:
        KontextError: shapes or strides that the kernel does not take.
    """
    require(x.shape == y.shape, f"x and y must have one shape, not {list(x.shape)} and {list(y.shape)}")
    for part in (x, y, gate):
        require(part.stride(-1) == 1, "gate and residual take rows of adjacent channels (stride 1)")
    return plan_rows(
        gate_residual_kernel,
        tuple(x.shape),
        {"x": x, "gate": gate, "y": y, **row_arguments(x.shape[1], x=x, y=y), "gate_batch": gate.stride(0)},
        {"WIDTH": x.shape[2]},
    )


def launch_gate_residual(x: Tensor, gate: Tensor, y: Tensor) -> None:
    plan_gate_residual(x, gate, y).run()


gate_residual_op = register_operator(
    "gate_residual(Tensor(a!) x, Tensor gate, Tensor y) -> ()",
    launch_gate_residual,
    gate_residual_reference,
    lambda x, gate, y: None,
)
