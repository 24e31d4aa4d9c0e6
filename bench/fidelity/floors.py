"""What a bundle loses by rounding inputs alone, and by rounding weights alone: the floor of its formats.

Both run in copies of the fp32 reference's graphs. For the inputs, nodes before each linear round them as the bundle
says, in fp32; for the weights, the reference's are replaced by the values that the bundle stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ...bundle_folder import MANIFEST_NAME
from ...quant.formats import FORMATS
from ...quant.formats.base import InputRounding
from ...quant.quantize import dequantize_weight
from ...quant.recipe import Layer
from ...quant.weight_layout import weight_layout
from ...runtime.bundle import Bundle
from ...temporary_folder import temporary_folder
from .bits_per_weight import headers, is_quantized
from .e2m1_graphs import E2M1, replace_e2m1

INPUTS, WEIGHTS = "inputs", "weights"

KEPT = ("input_mean", "input_factor", "input_scale", "mean_output")
CHANGES = (("Sub", "input_mean"), ("Mul", "input_factor"))
INVERSE = (("Div", "input_factor"), ("Add", "input_mean"))

SMALLEST = np.float32(1e-30)
"""The least that a token's values are divided by."""


Layers = dict[str, dict[str, Layer]]
"""Graph → weight → layer."""


def quantized_layers(bundle: Bundle) -> Layers:
    return {
        graph: {name: Layer.from_json(entry) for name, entry in layers.items() if is_quantized(entry)}
        for graph, layers in bundle.manifest["precision"]["layers"].items()
    }


def rounded_layers(bundle: Bundle) -> Layers:
    """Those whose inputs the bundle rounds."""
    found = {
        graph: {name: layer for name, layer in layers.items() if layer.activations}
        for graph, layers in quantized_layers(bundle).items()
    }
    return {graph: layers for graph, layers in found.items() if layers}


@contextlib.contextmanager
def floor(reference: Bundle, bundle: Bundle, part: str, layers: Layers) -> Iterator[Bundle]:
    """A copy of the reference in which `layers` have one `part` rounded as in `bundle`; its folder is removed
    afterwards."""
    with temporary_folder("floor") as temporary:
        folder = Path(temporary) / part
        shutil.copytree(reference.folder, folder)
        copy = Bundle.open(folder)
        manifest = json.loads(json.dumps(copy.manifest))
        for graph, rounded in layers.items():
            stored = headers(bundle)[graph].tensors
            places = copy.graphs[graph]
            change_graph(places.path, rounded, stored, part)
            if part == WEIGHTS:
                replace_weights(places.weights, headers(copy)[graph].tensors, rounded, stored)
            for path in (places.path, places.weights):
                data = path.read_bytes()
                entry = manifest["files"][path.relative_to(folder).as_posix()]
                entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
        yield Bundle.open(folder)


def replace_weights(
    path: Path, places: Mapping[str, Any], layers: Mapping[str, Layer], stored: Mapping[str, Any]
) -> None:
    """Writes what the bundle's stored tensors stand for over the reference's weights, in fp32."""
    with path.open("r+b") as file:
        for name, layer in layers.items():
            shape = tuple(places[name].shape)
            tensors = [stored[name + each.suffix].read() for each in weight_layout(layer, shape)]
            file.seek(places[name].start)
            file.write(dequantize_weight(tensors, layer).contiguous().view(torch.uint8).numpy().data)


def change_graph(path: Path, layers: Mapping[str, Layer], stored: Mapping[str, Any], part: str) -> None:
    """Adds nodes around each of a graph's linears: for the inputs, what rounds them; for the weights, what the bundle
    subtracts before and adds after the product."""
    model = onnx.load(path, load_external_data=False)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in layers:
            nodes.append(node)
            continue
        name = node.input[1]
        kept = {key: stored[f"{name}_{key}"].read() for key in KEPT if f"{name}_{key}" in stored}
        linear = Linear(f"{name}/floor", layers[name], kept)
        if part == INPUTS:
            linear.round_inputs(node)
        else:
            linear.shift(node)
        nodes += linear.nodes
        model.graph.initializer.extend(linear.constants)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    replace_e2m1(model.graph)
    onnx.save(model, path)


@dataclass
class Linear:
    """A linear with the nodes around it; `kept` is what the bundle stores beside its weight, by name."""

    prefix: str
    layer: Layer
    kept: Mapping[str, Tensor]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def round_inputs(self, product: onnx.NodeProto) -> None:
        """x less its mean and times its factors, rounded, and back."""
        x = self.changed(product.input[0], CHANGES)
        rounded = {
            InputRounding.STATIC: self.statically,
            InputRounding.DYNAMIC: self.per_token,
            InputRounding.BLOCKS: self.per_block,
        }
        assert self.layer.input_rounding is not None
        product.input[0] = self.changed(rounded[self.layer.input_rounding](x), INVERSE)
        self.nodes.append(product)

    def shift(self, product: onnx.NodeProto) -> None:
        """The product of x less its mean and times its factors, and the mean's own product in full precision."""
        product.input[0] = self.changed(product.input[0], CHANGES)
        self.nodes.append(product)
        if "mean_output" in self.kept:
            output, product.output[0] = product.output[0], f"{self.prefix}/product"
            self.changed(product.output[0], (("Add", "mean_output"),))
            self.nodes[-1].output[0] = output

    def changed(self, x: str, steps: Sequence[tuple[str, str]]) -> str:
        for operator, key in steps:
            if key in self.kept:
                x = self.node(operator, x, self.constant(self.kept[key].float().numpy()))
        return x

    def statically(self, x: str) -> str:
        form = FORMATS[self.layer.activations]
        kind = onnx.TensorProto.FLOAT8E4M3FN if form.name == "fp8" else onnx.TensorProto.INT8
        scale = self.constant(self.kept["input_scale"].float().numpy())
        zero = onnx.helper.make_tensor(f"{self.prefix}/zero", kind, (), [0])
        self.constants.append(zero)
        codes = self.node("QuantizeLinear", x, scale, zero.name)
        return self.node("DequantizeLinear", codes, scale, zero.name)

    def per_token(self, x: str) -> str:
        """As graphs for CPUs do (`export.graph.quantized_linear.multiply_on_cpu`): tokens are divided by their largest
        value, and then have one scale and zero point."""
        last = self.constant(np.array([-1], np.int64))
        ends = [self.node(f"Reduce{end}", x, last) for end in ("Max", "Min")]
        largest = self.node("Max", ends[0], self.node("Neg", ends[1]), self.constant(SMALLEST))
        rounded = onnx.helper.make_node(
            "DynamicQuantizeLinear",
            [self.node("Div", x, largest)],
            [f"{self.prefix}/{part}" for part in ("codes", "scale", "zero")],
        )
        self.nodes.append(rounded)
        return self.node("Mul", self.node("DequantizeLinear", *rounded.output), largest)

    def per_block(self, x: str) -> str:
        """With E4M3 scales for blocks, under one scale, as graphs do (`round_in_blocks`)."""
        group = FORMATS[self.layer.activations].group
        whole = self.constant(self.kept["input_scale"].numpy())
        most = self.constant(max(FORMATS[self.layer.activations].codes) * self.kept["input_scale"].numpy())
        zero = onnx.helper.make_tensor(f"{self.prefix}/zero", onnx.TensorProto.FLOAT8E4M3FN, (), [0])
        self.constants.append(zero)
        # A block is a row, and comes back to its place.
        blocks = self.node("Reshape", x, self.constant(np.array([-1, group])))
        largest = self.node("ReduceMax", self.node("Abs", blocks), self.constant(np.array([-1])), keepdims=1)
        steps = self.node("DequantizeLinear", self.node("QuantizeLinear", largest, most, zero.name), whole)
        blocked: dict[str, Any] = {"axis": -1, "block_size": group}
        divisor = self.node("Max", steps, self.constant(SMALLEST))
        codes = self.node("QuantizeLinear", blocks, divisor, output_dtype=E2M1, **blocked)
        values = self.node("DequantizeLinear", codes, steps, **blocked)
        return self.node("Reshape", values, self.node("Shape", x))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], output, **attributes))
        return output

    def constant(self, value: Any) -> str:
        name = f"{self.prefix}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name
