"""Checks an ONNX file before a library loads it: only operators that our exporter writes, no graphs inside graphs, no
weights but those of the bundle, the outputs that a bundle's graph has.

An ONNX file is a program: a Loop need not end, and external data may be any file of the machine. The C++ runtime has
the same check (runtime/cpp/src/graph_file.cpp). What is not bounded here is memory, which a graph's sizes decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import KontextError
from .protobuf import Value, fields

MAX_GRAPH_BYTES = 64 << 20
"""FLUX's transformer takes 1 MB without its weights."""

OPERATORS = frozenset(
    """
    Abs Add ArgMax Attention BitShift Cast Clip Concat Constant Conv Cos DequantizeLinear Div
    DynamicQuantizeLinear Erf Exp Expand Flatten Gather GatherElements Gelu GroupNormalization
    Identity LayerNormalization MatMul MatMulInteger Max Min Mul Neg Pad Pow QuantizeLinear
    RMSNormalization Reciprocal ReduceMax ReduceMean ReduceMin Reshape Resize RotaryEmbedding Round
    Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - a literal would be formatted to 60 lines
)
"""ONNX's own operators that exported graphs consist of, and a few that other versions of PyTorch write for the same
layers. None has a graph inside, or a number of iterations."""

DOMAINS = (b"", b"ai.onnx")
"""Both are ONNX's own."""

RANKS = {
    "text_encoder": {"pooled": 2},
    "text_encoder_2": {"text": 3},
    "vae_encoder": {"latents": 4},
    "vae_decoder": {"image": 4},
    "modulation": {"double_modulation": 5, "single_modulation": 4, "final_modulation": 3},
    "transformer": {"velocity": 3},
}
"""Graph → its outputs in order, all float32, and how many dimensions each has, as in docs/bundle.md."""

FLOAT = 1
"""Of onnx.TensorProto.DataType."""

Message = memoryview


def check_graph(data: bytes, path: Path, graph: str, files: Collection[str]) -> None:
    """Raises KontextError unless a file is a graph that our exporter could have written.

    Args:
        data, path: the ONNX file's bytes, and its path for the message.
        graph: which of `RANKS` it is.
        files: the names by which it may take weights, relative to its folder.
    """
    try:
        problem = problem_of(memoryview(data), graph, files)
    except ValueError as error:
        problem = f"it is damaged ({error})"
    if problem:
        raise KontextError(f"{path} is not a graph of this format: {problem}")


def problem_of(model: Message, graph: str, files: Collection[str]) -> str:
    """What is wrong with a ModelProto, or "". Raises ValueError if it is none."""
    found = [message(value) for number, value in fields(model) if number == 7]
    if len(found) != 1:
        return f"it has {len(found)} graphs"
    if any(number == 25 for number, _ in fields(model)):
        return "it has functions"
    outputs: dict[str, tuple[int, int | None]] = {}
    for number, value in fields(found[0]):
        if number == 1:  # node
            problem = problem_of_node(message(value), files)
        elif number == 5:  # initializer
            problem = problem_of_tensor(message(value), files)
        elif number == 12:  # output
            name, kind, rank = output_of(message(value))
            outputs[name], problem = (kind, rank), ""
        else:
            problem = "it has sparse weights" if number == 15 else ""
        if problem:
            return problem
    expected = {name: (FLOAT, rank) for name, rank in RANKS[graph].items()}
    if outputs != expected:
        listed = ", ".join(f"{name} of {rank} dimensions" for name, rank in RANKS[graph].items())
        return f"its outputs are not {listed} in float32"
    return ""


def problem_of_node(node: Message, files: Collection[str]) -> str:
    """What is wrong with a NodeProto."""
    for number, value in fields(node):
        if number == 4 and text(value) not in OPERATORS:
            return f"it has the operator {text(value)!r:.40}"
        if number == 7 and bytes(message(value)) not in DOMAINS:
            return f"it has an operator of the domain {text(value)!r:.40}"
        if number == 5:  # attribute
            for kind, part in fields(message(value)):
                if kind in (6, 11):  # g, graphs
                    return "it has a graph inside a node"
                if kind in (5, 10) and (problem := problem_of_tensor(message(part), files)):  # t, tensors
                    return problem
                if kind in (22, 23):  # sparse_tensor, sparse_tensors
                    return "it has sparse weights"
    return ""


def problem_of_tensor(tensor: Message, files: Collection[str]) -> str:
    """What is wrong with where a TensorProto has its values."""
    for number, value in fields(tensor):
        if number == 13:  # external_data: a pair of strings
            pair = {key: text(part) for key, part in fields(message(value)) if key in (1, 2)}
            if pair.get(1) == "location" and pair.get(2) not in files:
                return f"it takes weights from {pair.get(2)!r:.80}, which is not among the bundle's files"
    return ""


def output_of(info: Message) -> tuple[str, int, int | None]:
    """A ValueInfoProto's name, element type, and number of dimensions, None if it has no shape."""
    name, kind, rank = "", 0, None
    for value in only(info, 1):
        name = text(value)
    for tensor in (part for type_ in only(info, 2) for part in only(message(type_), 1)):
        for value in only(message(tensor), 1):
            kind = value if isinstance(value, int) else 0
        for shape in only(message(tensor), 2):
            rank = sum(1 for _ in only(message(shape), 1))
    return name, kind, rank


def only(parent: Message, wanted: int) -> Iterator[Value]:
    """The values of one field."""
    return (value for number, value in fields(parent) if number == wanted)


def message(value: Value) -> Message:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def text(value: Value) -> str:
    return bytes(message(value)).decode("utf-8", "backslashreplace")
