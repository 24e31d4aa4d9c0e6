"""Registers the operators of `torch.ops.kontext`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.library import CustomOpDef


def register_operator(
    schema: str, launch: Callable[..., Any], reference: Callable[..., Any], fake: Callable[..., Any]
) -> CustomOpDef:
    """The operator `torch.ops.kontext.<name>`.

    Args:
        schema: in PyTorch's notation, such as "gate_residual(Tensor(a!) x, Tensor gate, Tensor y) -> ()"; a mark like
            `(a!)` stands at the tensors that the operator changes.
        launch: runs on CUDA tensors: checks them and launches the kernel.
        reference: runs on CPU tensors: the reference implementation in PyTorch.
        fake: runs on tensors without data, for torch.compile and export: checks them and returns empty outputs.
    """
    name, opening, signature = schema.partition("(")
    operator = torch.library.custom_op(
        f"kontext::{name}",
        launch,
        mutates_args=re.findall(r"Tensor\(\w!\) (\w+)", schema),
        device_types="cuda",
        schema=opening + signature,
    )
    operator.register_kernel("cpu")(reference)
    operator.register_fake(fake)
    return operator
