"""Graphs with E2M1 (NVFP4) for ONNX Runtime, which has no kernels for it: the same in fp32, by other operators.

Weights are looked up, both values of a byte at once. Values that a graph rounds to E2M1 are rounded by arithmetic: to
the nearest multiple of 1/2 below 2, of 1 below 4 and of 2 up to 6, of two as near to the even multiple, which has
E2M1's even code. The parts of a number below 2, from there to 4 and from there to 6 are rounded alone and added, by
operators that graphs of bundles may have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...bundle_folder import MANIFEST_NAME
from ...quant.formats.nvfp4 import NVFP4
from ...runtime.bundle import Bundle
from ...temporary_folder import temporary_folder

E2M1 = TensorProto.FLOAT4E2M1


@contextlib.contextmanager
def runnable_copy(bundle: Bundle) -> Iterator[Bundle]:
    """A copy of a bundle whose graphs have no E2M1, and whose manifest names no number formats."""
    with temporary_folder("e2m1") as temporary:
        folder = Path(temporary) / "bundle"
        shutil.copytree(bundle.folder, folder)
        manifest = json.loads(json.dumps(bundle.manifest))
        manifest["precision"]["layers"] = {}
        for entry in bundle.graphs.values():
            name = entry.path.relative_to(bundle.folder).as_posix()
            model = onnx.load(folder / name, load_external_data=False)
            if replace_e2m1(model.graph):
                data = model.SerializeToString()
                (folder / name).write_bytes(data)
                manifest["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
        yield Bundle.open(folder)


def replace_e2m1(graph: onnx.GraphProto) -> int:
    """Replaces what reads or writes E2M1 codes in place; returns for how many weights and inputs."""
    changed = Replacement(graph)
    nodes = list(graph.node)
    for node in nodes:
        changed.add(node)
    del graph.node[:]
    graph.node.extend(changed.nodes)
    for tensor in graph.initializer:
        if tensor.data_type == E2M1:  # the same bytes
            tensor.data_type = TensorProto.UINT8
            tensor.dims[-1] //= 2
    return changed.count


class Replacement:
    """The nodes of a graph while they are replaced."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.weights = {each.name: tuple(each.dims) for each in graph.initializer if each.data_type == E2M1}
        self.rounded: dict[str, str] = {}
        """Codes → x, of which they are."""
        self.constants = {each.name for each in graph.initializer}
        self.count = 0

    def add(self, node: onnx.NodeProto) -> None:
        """Adds a node, or what replaces it."""
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "QuantizeLinear" and attributes.get("output_dtype") == E2M1:
            self.count += 1
            self.rounded[node.output[0]] = node.input[0]
            self.round(node, attributes["block_size"])
        elif node.op_type == "DequantizeLinear" and node.input[0] in self.rounded:
            self.multiply(node, self.rounded[node.input[0]])
        elif node.op_type == "DequantizeLinear" and node.input[0] in self.weights:
            self.count += 1
            self.look_up(node, self.weights[node.input[0]], attributes["block_size"])
        else:
            self.nodes.append(node)

    def round(self, node: onnx.NodeProto, group: int) -> None:
        """x / steps → E2M1 values in units of the steps, fp32 [blocks, group]; blocks follow each other in memory."""
        name, (x, steps) = node.output[0], node.input
        units = self.node(
            name, "Div", self.rows(name, "values", x, group), self.rows(name, "divisors", steps, 1)
        )
        below_two, below_four, whole = (
            self.node(
                name,
                "Clip",
                units,
                self.constant(f"minus_{most}", -most),
                self.constant(f"plus_{most}", most),
            )
            for most in (2.0, 4.0, 6.0)
        )
        half, two = self.constant("half", 0.5), self.constant("two", 2.0)
        halves = self.node(
            name, "Mul", self.node(name, "Round", self.node(name, "Mul", below_two, two)), half
        )
        ones = self.node(name, "Round", self.node(name, "Sub", below_four, below_two))
        twos = self.node(name, "Mul", self.node(name, "Sub", whole, below_four), half)
        twos = self.node(name, "Mul", self.node(name, "Round", twos), two)
        self.nodes.append(helper.make_node("Add", [self.node(name, "Add", halves, ones), twos], [name]))

    def multiply(self, node: onnx.NodeProto, x: str) -> None:
        """Values in units of the steps → in the shape of x."""
        (values, steps), name = node.input, node.output[0]
        product = self.node(name, "Mul", values, self.rows(name, "steps", steps, 1))
        self.nodes.append(helper.make_node("Reshape", [product, self.node(name, "Shape", x)], [name]))

    def look_up(self, node: onnx.NodeProto, shape: tuple[int, ...], group: int) -> None:
        """A weight's codes → values times the steps of blocks of rows, in the dtype of the steps."""
        (values, steps), name = node.input, node.output[0]
        codes = np.array(NVFP4.codes, np.float32)
        pairs = np.stack([np.tile(codes, 16), np.repeat(codes, 16)], axis=1)  # the low half is the first
        indices = self.node(name, "Cast", values, to=TensorProto.INT32)
        weight = self.node(name, "Gather", self.constant("pairs", pairs), indices)
        rows, columns = shape
        blocks = self.constant(f"{rows}x{columns}_blocks", np.array([rows // group, group, columns]))
        weight = self.node(name, "Reshape", weight, blocks)
        steps = self.node(name, "Unsqueeze", steps, self.constant("second", np.array([1])))
        weight = self.node(name, "Mul", weight, self.node(name, "Cast", steps, to=TensorProto.FLOAT))
        whole = self.constant(f"{rows}x{columns}", np.array([rows, columns]))
        self.nodes.append(helper.make_node("Reshape", [weight, whole], [name]))

    def rows(self, name: str, what: str, value: str, width: int) -> str:
        """A value as [-1, width]."""
        shape = self.constant(f"rows_of_{width}", np.array([-1, width]))
        result = f"{name}/{what}"
        self.nodes.append(helper.make_node("Reshape", [value, shape], [result]))
        return result

    def node(self, name: str, operator: str, *inputs: str, **attributes: Any) -> str:
        result = f"{name}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [result], result, **attributes))
        return result

    def constant(self, name: str, value: float | np.ndarray) -> str:
        """A constant of the graph, shared by name; numbers in fp32."""
        name = f"e2m1/{name}"
        if name not in self.constants:
            self.constants.add(name)
            array = np.float32(value) if isinstance(value, float) else value
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name
