"""config.pbtxt of each model in a repository for NVIDIA Triton Inference Server, from the contract and a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...runtime.bundle import Bundle
from ...runtime.embedding_cache import DEFAULT_BYTES
from ...runtime.server import contract
from ...runtime.server.contract import Tensor

QUEUE_DELAY_MICROSECONDS = 5000
"""How long a request waits for others to join its batch; a step of the smallest model takes longer."""

QUEUE_LENGTH = 256
"""Longest queue in the server, whose requests `kontext_stream` takes in at once: its own limit is `max_queue`."""

ONNX_TYPES = {1: "TYPE_FP32", 7: "TYPE_INT64"}
"""ONNX element type → config.pbtxt's name; the inputs and outputs of a bundle's graphs have no others
(docs/bundle.md)."""

WARMUP = (contract.PROMPT, contract.IMAGES, contract.STEPS)
"""Inputs of the warm-up, an edit of one step, which runs every graph; files in the folder `warmup` have these names."""


def stream_config(
    batch: int, instances: int, graphs_in_server: bool, digest: str, limits: contract.Limits
) -> str:
    """config.pbtxt of `kontext_stream`, which serves the bundle with this digest and no other; `limits` are what one
    request may ask for."""
    parameters = {
        "graphs": "server" if graphs_in_server else "",
        "device": "",
        "threads": "",
        "low_memory": "false",
        "embedding_cache": str(DEFAULT_BYTES),
        "verify": "true",
        "require_digest": digest,
        **{name: str(value) for name, value in vars(limits).items()},
    }
    return "\n".join(
        [
            "# README.md, beside the models, explains the parameters.",
            *head(contract.STREAM, "python", batch),
            "model_transaction_policy { decoupled: true }",
            *tensors("input", contract.INPUTS),
            *tensors("output", contract.OUTPUTS[contract.STREAM]),
            "dynamic_batching {",
            f"  max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS}",
            f"  default_queue_policy {{ max_queue_size: {QUEUE_LENGTH} }}",
            "}",
            instance_group(instances, "KIND_AUTO"),
            # While it starts, the server takes no requests from its own models: no warm-up if it runs the graphs.
            *([] if graphs_in_server else warmup()),
            *(parameter(name, value) for name, value in parameters.items()),
            "",
        ]
    )


def warmup() -> list[str]:
    inputs = (
        f'  inputs {{ key: "{tensor.name}" value {{ data_type: {tensor.config_type} dims: [ 1 ] '
        f'input_data_file: "{tensor.name}" }} }}'
        for tensor in WARMUP
    )
    return ['model_warmup [ { name: "edit" batch_size: 1', *inputs, "} ]"]


def unary_config() -> str:
    """config.pbtxt of `kontext`."""
    return "\n".join(
        [
            *head(contract.UNARY, "python", 1),
            *tensors("input", contract.INPUTS),
            *tensors("output", contract.OUTPUTS[contract.UNARY]),
            instance_group(1, "KIND_CPU"),
            "",
        ]
    )


def graph_config(bundle: Bundle, name: str) -> str:
    """config.pbtxt of one of the bundle's graphs as a model of the server's ONNX Runtime backend."""
    inputs, outputs = graph_tensors(bundle.content(bundle.graphs[name].path))
    return "\n".join(
        [
            *head(f"{contract.UNARY}_{name}", "onnxruntime", 0),
            *listing("input", inputs),
            *listing("output", outputs),
            instance_group(1, "KIND_AUTO"),
            "",
        ]
    )


def graph_tensors(data: bytes) -> tuple[dict[str, tuple[str, list[int]]], dict[str, tuple[str, list[int]]]]:
    """The inputs and outputs of an ONNX file's bytes: name → (type, shape with -1 for a dynamic dimension)."""
    import onnx

    model = onnx.load_model_from_string(data)

    def described(values: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[str, list[int]]]:
        return {
            value.name: (
                ONNX_TYPES[value.type.tensor_type.elem_type],
                [each.dim_value or -1 for each in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    return described(model.graph.input), described(model.graph.output)


def head(name: str, backend: str, batch: int) -> list[str]:
    return [f'name: "{name}"', f'backend: "{backend}"', f"max_batch_size: {batch}"]


def tensors(kind: str, listed: Sequence[Tensor]) -> list[str]:
    return listing(
        kind,
        {each.name: (each.config_type, list(each.shape)) for each in listed},
        {each.name for each in listed if each.optional},
    )


def listing(
    kind: str, shapes: Mapping[str, tuple[str, list[int]]], optional: set[str] | frozenset[str] = frozenset()
) -> list[str]:
    rows = [
        f'  {{ name: "{name}" data_type: {dtype} dims: [ {", ".join(map(str, shape))} ]'
        f"{' optional: true' if name in optional else ''} }}"
        for name, (dtype, shape) in shapes.items()
    ]
    return [f"{kind} [", ",\n".join(rows), "]"]


def instance_group(count: int, kind: str) -> str:
    """KIND_AUTO: `count` instances on each GPU that the server sees, or on the CPU if there is none."""
    return f"instance_group [ {{ count: {count} kind: {kind} }} ]"


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
