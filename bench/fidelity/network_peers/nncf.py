"""NNCF, OpenVINO's quantization library, on our graphs; OpenVINO runs the result in fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.backends.openvino.device import TELEMETRY, hidden_module, load_openvino
from ..peer_quantizers import GROUP
from .answering import Answer, Arrays
from .graphs import Graph, GraphMethod

SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Else OpenVINO computes in bf16 where the CPU can, and rounds the inputs of compressed weights to INT8."""

NOT_LAYERS = ("Constant", "Parameter", "Result")


def compress(mode: str, model: Any, graph: Graph) -> Any:
    """Weight-only, rounded to the nearest; `mode` names one of NNCF's."""
    nncf = load_nncf()
    four_bits = not mode.startswith("INT8")
    return nncf.compress_weights(
        model,
        mode=getattr(nncf.CompressWeightsMode, mode),
        ignored_scope=nncf.IgnoredScope(names=others(model, graph, ("MatMul", "Gather")), validate=False),
        **({"ratio": 1.0, "group_size": GROUP, "all_layers": True} if four_bits else {}),
    )


def quantize(model: Any, graph: Graph) -> Any:
    """INT8 weights, and INT8 inputs with static scales, by NNCF's recipe for transformers (SmoothQuant, bias
    correction)."""
    nncf = load_nncf()
    return nncf.quantize(
        model,
        nncf.Dataset(list(graph.examples)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(graph.examples),
        ignored_scope=nncf.IgnoredScope(names=others(model, graph), validate=False),
    )


def load_nncf() -> Any:
    """NNCF, like OpenVINO without the telemetry."""
    load_openvino()
    with hidden_module(TELEMETRY):
        import nncf
    return nncf


def others(model: Any, graph: Graph, kinds: tuple[str, ...] = ()) -> list[str]:
    """Names of all operations, or those of some kinds, that are not to be quantized."""
    wanted = set(graph.products.values())
    return [
        operation.get_friendly_name()
        for operation in model.get_ops()
        if operation.get_friendly_name() not in wanted
        and operation.get_type_name() not in NOT_LAYERS
        and (not kinds or operation.get_type_name() in kinds)
    ]


def run_method(rewrite: Callable[[Any, Graph], Any]) -> Callable[[Graph], tuple[Answer, dict[str, int]]]:
    """A `GraphMethod`'s function that reads a graph with OpenVINO, rewrites it and compiles the result."""

    def method(graph: Graph) -> tuple[Answer, dict[str, int]]:
        import openvino

        core = openvino.Core()
        model = rewrite(core.read_model(graph.path), graph)
        return answer(core.compile_model(model, "CPU", SETTINGS)), stored_bits(model, graph)

    return method


def answer(compiled: Any) -> Answer:
    names = [output.get_any_name() for output in compiled.outputs]
    request = compiled.create_infer_request()

    def run(inputs: Arrays) -> dict[str, NDArray[Any]]:
        outputs = request.infer(dict(inputs)).values()
        return {name: np.array(value) for name, value in zip(names, outputs, strict=True)}

    return run


def stored_bits(model: Any, graph: Graph) -> dict[str, int]:
    """Weight → bits of its values, scales and zero points, and of the range of its input."""
    nodes = {operation.get_friendly_name(): operation for operation in model.get_ops()}
    found = {}
    for weight, product in graph.products.items():
        inputs, weights = (nodes[product].input_value(index).get_node() for index in (0, 1))
        values = constants(weights)
        if max(values, key=count).get_element_type().bitwidth > 8:
            continue
        parts = values
        if inputs.get_type_name() == "FakeQuantize":
            parts = [*values, *(inputs.input_value(index).get_node() for index in (1, 2))]
        found[weight] = sum(size(part) for part in parts)
    return found


def constants(node: Any) -> list[Any]:
    """The constants that a weight is computed from: values, scales, zero points; no shapes."""
    if node.get_type_name() == "Constant":
        return [] if node.get_element_type().to_string().startswith("i64") else [node]
    return [constant for value in node.input_values() for constant in constants(value.get_node())]


def count(constant: Any) -> int:
    return int(np.prod(constant.get_output_shape(0)))


def size(constant: Any) -> int:
    return count(constant) * int(constant.get_element_type().bitwidth)


INT8_WEIGHTS = GraphMethod(load_nncf, run_method(partial(compress, "INT8_ASYM")))
INT4_WEIGHTS = GraphMethod(load_nncf, run_method(partial(compress, "INT4_SYM")))
INT4_ASYM_WEIGHTS = GraphMethod(load_nncf, run_method(partial(compress, "INT4_ASYM")))
NF4_WEIGHTS = GraphMethod(load_nncf, run_method(partial(compress, "NF4")))
INT8 = GraphMethod(load_nncf, run_method(quantize), calibrated=True)
