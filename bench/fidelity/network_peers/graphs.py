"""Peers that quantize our fp32 graphs: a library rewrites each ONNX model that has layers to quantize, and a runtime of
its own runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ....errors import KontextError
from ....runtime.backends.onnxruntime_library import first_line
from ....runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from ....runtime.bundle import Bundle
from ..bits_per_weight import COUNTED, Layers
from ..quiet import quiet
from .answering import Answer, AnsweringBackend
from .calibration import run_scenes

Examples = Sequence[dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Graph:
    """A graph to quantize: its file in the reference bundle; weight → name of the MatMul that multiplies with it, for
    exactly those that are to be quantized; and its inputs in all runs of a calibration."""

    path: Path
    products: Mapping[str, str]
    examples: Examples


@dataclass(frozen=True)
class GraphMethod:
    """How a library quantizes a graph: what runs the result, and the bits stored for each quantized weight, scales
    included. `load` imports the library; `calibrated`: whether it needs examples."""

    load: Callable[[], object]
    quantize: Callable[[Graph], tuple[Answer, dict[str, int]]]
    calibrated: bool = False


def open_graphs(
    name: str, method: GraphMethod, reference: Bundle, backend: Backend, layers: Layers
) -> tuple[Backend, dict[str, int]]:
    """The reference with the graphs quantized that have `layers`; and for each graph the bits stored for them.

    Raises:
        KontextError: the library cannot quantize a graph, or leaves a layer as it is; the message names it.
    """
    chosen = {graph: weights for graph, weights in layers.items() if weights}
    examples = example_inputs(reference, backend, list(chosen)) if method.calibrated else {}
    answers: dict[str, Answer] = {}
    bits = dict.fromkeys(COUNTED, 0)
    for graph, weights in chosen.items():
        path = reference.folder / f"{graph}.onnx"
        found = products(onnx.load(path, load_external_data=False), weights)
        try:
            with quiet():
                answers[graph], stored = method.quantize(Graph(path, found, examples.get(graph, [])))
        except Exception as fault:  # each library raises its own types
            raise KontextError(f"{name} cannot quantize the graph {graph}: {first_line(fault)}") from fault
        if missing := [weight for weight in weights if weight not in stored]:
            raise KontextError(f"{name} cannot quantize {graph}: {missing[0]}: it leaves it as it is")
        if graph in bits:
            bits[graph] = sum(stored.values())
    return AnsweringBackend(backend, answers), bits


def products(model: onnx.ModelProto, weights: Collection[str]) -> dict[str, str]:
    """Weight → name of the MatMul that multiplies with it."""
    return {
        node.input[1]: node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    }


class Watcher(ForwardingBackend):
    """Keeps the inputs of some graphs."""

    def __init__(self, backend: Backend, graphs: Collection[str]) -> None:
        super().__init__(backend)
        self.inputs: dict[str, list[dict[str, NDArray[Any]]]] = {graph: [] for graph in graphs}

    def hold(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return dict(arrays)

    def run(
        self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None
    ) -> dict[str, NDArray[Any]]:
        if graph in self.inputs:
            self.inputs[graph].append({name: np.array(value) for name, value in inputs.items()})
        return super().run(graph, inputs, step)


def example_inputs(reference: Bundle, backend: Backend, graphs: Collection[str]) -> dict[str, Examples]:
    """Graph → its inputs in all runs of the calibration's edits."""
    watcher = Watcher(backend, graphs)
    run_scenes(reference, watcher, bar=sys.stderr)
    return dict(watcher.inputs)
