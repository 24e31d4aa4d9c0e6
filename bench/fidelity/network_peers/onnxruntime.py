"""ONNX Runtime's own quantization tools (`onnxruntime.quantization`), with scales for each output channel."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from ....temporary_folder import temporary_folder
from .answering import Answer, Arrays
from .graphs import Examples, Graph, GraphMethod

Tool = Callable[[Path, Path, Graph], None]
"""Reads the first file and writes the second."""


def quantize_dynamic(source: Path, target: Path, graph: Graph) -> None:
    """INT8 weights; inputs as UINT8 with one scale for all tokens, found at run time (MatMulInteger)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=list(graph.products.values()),
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def quantize_static(source: Path, target: Path, graph: Graph) -> None:
    """INT8 weights; inputs as INT8 with one static scale and zero point, from the smallest and largest value (QDQ).

    By default the tool also rounds the products' outputs. Here it does not, as in our bundles; with them rounded, ONNX
    Runtime 1.32 refuses its own T5 encoder.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        reader(graph.examples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=list(graph.products.values()),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )


def reader(examples: Examples) -> Any:
    """The examples as the tool reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[dict[str, NDArray[Any]]] = iter(examples)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.left, None)

    return Reader()


def quantized_by(tool: Tool) -> Callable[[Graph], tuple[Answer, dict[str, int]]]:
    """A `GraphMethod`'s function that runs the tool on a copy of the graph with its weights inside."""

    def quantize(graph: Graph) -> tuple[Answer, dict[str, int]]:
        with temporary_folder("peer") as temporary:
            source, target = Path(temporary, "source.onnx"), Path(temporary, "quantized.onnx")
            onnx.save(onnx.load(graph.path), source)
            tool(source, target, graph)
            model = onnx.load(target)
            session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        return answer(session), stored_bits(model, graph)

    return quantize


def answer(session: onnxruntime.InferenceSession) -> Answer:
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(None, dict(inputs)), strict=True))

    return run


def stored_bits(model: onnx.ModelProto, graph: Graph) -> dict[str, int]:
    """Weight → bits of its values and scales, and of the static scale and zero point of its input. The weights' own
    zero points are all zero and not counted."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {name: node for node in model.graph.node for name in node.output}
    by_name = {node.name: node for node in model.graph.node}
    found = {}
    for weight, product in graph.products.items():
        if f"{weight}_quantized" not in tensors:
            continue
        parts = [tensors[f"{weight}_quantized"], tensors[f"{weight}_scale"]]
        node = by_name.get(product)
        before = inputs.get(node.input[0]) if node is not None else None
        if before is not None and before.op_type == "DequantizeLinear":
            parts += [tensors[name] for name in before.input[1:]]
        found[weight] = sum(8 * np.asarray(numpy_helper.to_array(part)).nbytes for part in parts)
    return found


def load_tools() -> object:
    return importlib.import_module("onnxruntime.quantization")


DYNAMIC = GraphMethod(load_tools, quantized_by(quantize_dynamic))
STATIC = GraphMethod(load_tools, quantized_by(quantize_static), calibrated=True)
