"""Which execution provider of ONNX Runtime runs which operators of a session.

A provider that lacks a kernel leaves the operator to the CPU, and every value on the way is copied: slow, and silent.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

RECORD = ("session.record_ep_graph_assignment_info", "1")
"""The entry of a session's configuration that `placed_operators` needs (ONNX Runtime 1.24)."""

CPU = "CPUExecutionProvider"

HEAVY = frozenset(
    (
        "Attention",
        "Conv",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "Gelu",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "QuantizeLinear",
        "Resize",
        "RMSNormalization",
        "RotaryEmbedding",
        "Softmax",
    )
)
"""Operators that compute on whole activations or weights. Others on the CPU compute shapes, where they belong."""


def placed_operators(session: onnxruntime.InferenceSession) -> dict[str, Counter[str]]:
    """Provider → operator → how many of them it runs; before a provider fuses them."""
    placed: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        counts = placed.setdefault(part.ep_name, Counter())
        counts.update(node.op_type for node in part.get_nodes())
    return placed


def heavy_on_cpu(placed: dict[str, Counter[str]]) -> dict[str, int]:
    """The heavy operators that the CPU runs although another provider was asked for."""
    return {name: count for name, count in sorted(placed.get(CPU, Counter()).items()) if name in HEAVY}
