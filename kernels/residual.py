"""Gate and residual in place: x += gate * y, for products whose kernel has no such epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Launch, jit, require, tl
from .rows import plan_rows


def gate_residual_reference(x: Tensor, gate: Tensor, y: Tensor) -> None:
    """The plain meaning, in place: x, y [batch, tokens, width], gate [batch, width]; the sum is rounded once."""
    x.copy_(x.float() + gate.float()[:, None] * y.float())


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
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    token = row % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = x + batch * x_batch + token * x_token + columns
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(y + batch * y_batch + token * y_token + columns, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(gate + batch * gate_batch + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (value + by * added).to(x.dtype.element_ty), mask=inside)


def plan_gate_residual(x: Tensor, gate: Tensor, y: Tensor) -> Launch:
    require(x.shape == y.shape, f"a residual of {list(x.shape)} and a product of {list(y.shape)}")
    for part in (x, y, gate):
        require(part.stride(-1) == 1, "gate and residual take rows whose channels lie next to each other")
    return plan_rows(
        gate_residual_kernel,
        tuple(x.shape),
        {
            "x": x,
            "gate": gate,
            "y": y,
            "tokens": x.shape[1],
            "x_batch": x.stride(0),
            "x_token": x.stride(1),
            "y_batch": y.stride(0),
            "y_token": y.stride(1),
            "gate_batch": gate.stride(0),
        },
        {"WIDTH": x.shape[2]},
    )


def launch_gate_residual(x: Tensor, gate: Tensor, y: Tensor) -> None:
    if x.numel():
        plan_gate_residual(x, gate, y).run()


gate_residual_op = torch.library.custom_op(
    "kontext::gate_residual",
    launch_gate_residual,
    mutates_args=("x",),
    device_types="cuda",
    schema="(Tensor(a!) x, Tensor gate, Tensor y) -> ()",
)
gate_residual_op.register_kernel("cpu")(gate_residual_reference)
gate_residual_op.register_fake(lambda x, gate, y: None)
