"""`--link-weights`: graphs that read weights from the user's safetensors files, instead of copies in the bundle.

Only weights that need no conversion are linked. The graph names the file as external data under `links/`, where no file
exists; the manifest says which of the user's files is meant, and the runtime passes its contents to ONNX Runtime. Fused
and transposed weights are assembled by a few operators at the start of the graph, which ONNX Runtime and TensorRT
compute once, at load time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...model.checkpoint import Checkpoint, NetworkWeights
from ...model.diffusers_format import Join
from ...model.gguf_file import GgufTensor
from ...model.safetensors_file import TensorInfo
from ...model.stored_dtypes import STORED_DTYPES
from ...quant.recipe import Recipe
from ...runtime.bundle_files import file_digest
from .bind_weights import ONNX_DTYPES


@dataclass(frozen=True)
class Link:
    """A native weight that is stored in the user's files as `parts`."""

    parts: tuple[TensorInfo, ...]
    join: Join
    transpose: bool


def linkable_weights(network: NetworkWeights, recipe: Recipe, linears: set[str]) -> dict[str, Link]:
    """The weights of a network that need no copy: in safetensors, in the format to store, and without LoRA."""
    result = {}
    for weight, source in network.sources.items():
        if not why_copied(network, recipe, linears, weight):
            parts = [network.files[part] for part in source.parts]
            plain = tuple(part for part in parts if isinstance(part, TensorInfo))
            result[weight] = Link(plain, source.join, weight in linears)
    return result


def why_copied(network: NetworkWeights, recipe: Recipe, linears: set[str], weight: str) -> str:
    """Why a weight cannot be linked, in words; "" if it can."""
    linear, shape = weight in linears, network.shapes[weight]
    stored = STORED_DTYPES[recipe.compute[network.name]]
    layer = recipe.layer_of(network.name, weight, shape[::-1] if linear else shape, linear)
    if layer.format != recipe.compute[network.name]:
        return f"quantized to {layer.format}"
    if weight in network.updates:
        return "changed by a LoRA"
    for part in (network.files[name] for name in network.sources[weight].parts):
        if not isinstance(part, TensorInfo):
            return "in a GGUF file" if isinstance(part, GgufTensor) else f"decoded from {part.dtype}"
        if part.dtype != stored:
            return f"in {part.dtype}, not {stored}"
    return ""


def link_names(paths: Iterable[Path]) -> dict[Path, str]:
    """File → its name in the bundle, made of its folder's name and its own."""
    names: dict[Path, str] = {}
    for path in sorted(set(paths)):
        name = f"links/{path.absolute().parent.name or 'root'}/{path.name}"
        name = "".join(c if c.isalnum() or c in "-_./" else "_" for c in name)
        names[path] = name if name not in names.values() else f"links/{len(names)}/{Path(name).name}"
    return names


def manifest_links(
    checkpoint: Checkpoint, names: Mapping[Path, str], advance: Callable[[int], object]
) -> dict[str, dict[str, object]]:
    """The manifest's entry for every linked file: its path, and what identifies its contents.

    Reads the files whole; `advance` is called with the bytes read since the last call.
    """
    return {
        name: {
            "path": str(path.absolute()),
            "size": path.stat().st_size,
            "header_sha256": checkpoint.files[path],
            "sha256": file_digest(path, advance),
        }
        for path, name in names.items()
    }


def bind_links(model: ir.Model, links: Mapping[str, Link], names: Mapping[Path, str]) -> None:
    """Binds every linked weight of `model` to its place in the user's files, and adds operators that assemble it.

    Raises:
        RuntimeError: the graph lacks a weight, or has it in another shape or format (a bug).
    """
    graph = model.graph
    for weight, link in links.items():
        value = graph.initializers.get(weight)
        if value is None or value.const_value is not None:
            raise RuntimeError(f"the graph does not use {weight}")
        users = [use.node for use in value.uses()]
        del graph.initializers[weight]
        parts = [initializer(graph, part, names[part.path]) for part in link.parts]
        nodes = assembly(weight, link, parts, len(value.shape or ()))
        if nodes:
            for node in nodes:
                graph.insert_before(users[0], node)
            result = nodes[-1].outputs[0]
            result.shape, result.type = value.shape, value.type
        else:
            result = parts[0]
            if (result.dtype, result.shape) != (value.dtype, value.shape):
                raise RuntimeError(f"{weight} is {value.dtype} {value.shape} in the graph")
        ir.convenience.replace_all_uses_with(value, result)


def initializer(graph: ir.Graph, part: TensorInfo, location: str) -> ir.Value:
    name = f"{location}:{part.name}"
    if name not in graph.initializers:
        dtype, shape = ONNX_DTYPES[part.dtype], ir.Shape(part.shape)
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        value.const_value = ir.ExternalTensor(
            location, part.start, part.size, dtype, shape=shape, name=name, base_dir=""
        )
        graph.initializers[name] = value
    return graph.initializers[name]


def assembly(weight: str, link: Link, parts: list[ir.Value], rank: int) -> list[ir.Node]:
    """The nodes that assemble a native weight from its parts; none if it is one unchanged part."""
    nodes: list[ir.Node] = []

    def add(
        operator: str, inputs: list[ir.Value], outputs: int = 1, **attributes: int | list[int]
    ) -> list[ir.Value]:
        name = f"{weight}/{operator}"
        node = ir.node(operator, inputs, attributes=attributes, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}_{index}"
        nodes.append(node)
        return list(node.outputs)

    value = parts[0] if len(parts) == 1 else add("Concat", parts, axis=0)[0]
    if link.join == "swap_halves":
        first, second = add("Split", [value], outputs=2, axis=0, num_outputs=2)
        value = add("Concat", [second, first], axis=0)[0]
    if len(link.parts[0].shape) > rank:  # the reference autoencoder's 1x1 convolutions, which are our linears
        value = add("Flatten", [value], axis=1)[0]
    if link.transpose:
        add("Transpose", [value], perm=[1, 0])
    return nodes
