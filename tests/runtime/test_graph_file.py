"""ONNX files from anyone: what is not one of our graphs is refused before a library sees it, in Python as in C++."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.runtime.bundle import Bundle  # noqa: E402
from kontext.runtime.graph_file import OPERATORS, RANKS, check_graph  # noqa: E402
from kontext.runtime.manifest_ranges import MOST_CHARACTERS, MOST_FILES, MOST_SIZES, RANGES  # noqa: E402
from kontext.runtime.tokenizer_file import MAX_COMPONENTS, MAX_GROWTH  # noqa: E402

CPP = Path(__file__).resolve().parents[2] / "runtime" / "cpp" / "src"
WEIGHTS = {"weights/vae_decoder.safetensors"}
Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path) -> bytes:
    return (tiny_bundle / "vae_decoder.onnx").read_bytes()


def refusal(data: bytes, graph: str = "vae_decoder") -> str:
    with pytest.raises(KontextError) as caught:
        check_graph(data, Path("x.onnx"), graph, WEIGHTS)
    message = str(caught.value)
    assert message.startswith("x.onnx is not a graph of this format: ")
    assert "\n" not in message
    return message


def test_every_graph_of_a_bundle_passes(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for graph in RANKS:
        bundle.graph_bytes(graph)


def endless_loop(model: onnx.ModelProto) -> None:
    """`while true` by ONNX's own means."""
    yes = helper.make_tensor_value_info("yes", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["yes"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [yes],
    )  # fmt: skip
    model.graph.node.insert(0, helper.make_node("Loop", ["", "true"], [], body=body))


def hidden_graph(model: onnx.ModelProto) -> None:
    empty = helper.make_graph([], "g", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("note", empty))


def weights_from(place: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        entries = (entry for weight in model.graph.initializer for entry in weight.external_data)
        next(entry for entry in entries if entry.key == "location").value = place

    return change


def constant_from(place: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        value = onnx.TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        value.external_data.add(key="location", value=place)
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))

    return change


def changed_output(change: Callable[[onnx.ValueInfoProto], object]) -> Change:
    return lambda model: change(model.graph.output[0])


HOSTILE: dict[str, tuple[Change, str]] = {
    "a loop without end": (endless_loop, "it has the operator 'Loop'"),
    "a graph in a node": (hidden_graph, "it has a graph inside a node"),
    "a function": (lambda model: model.functions.add(name="f"), "it has functions"),
    "another domain": (
        lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"),
        "an operator of the domain 'com.microsoft'",
    ),
    "a file of the machine": (weights_from("/etc/passwd"), "takes weights from '/etc/passwd'"),
    "a file above": (weights_from("../x"), "takes weights from '../x'"),
    "a constant from a file": (constant_from("/dev/zero"), "takes weights from '/dev/zero'"),
    "sparse weights": (lambda model: model.graph.sparse_initializer.add(), "it has sparse weights"),
    "no outputs": (lambda model: model.graph.ClearField("output"), "its outputs are not image of 4"),
    "another name": (
        changed_output(lambda output: setattr(output, "name", "picture")),
        "its outputs are not",
    ),
    "another rank": (
        changed_output(lambda output: output.type.tensor_type.shape.dim.pop()),
        "its outputs are not image of 4 dimensions in float32",
    ),
    "another type": (
        changed_output(lambda output: setattr(output.type.tensor_type, "elem_type", TensorProto.INT32)),
        "its outputs are not",
    ),
    "no shape": (
        changed_output(lambda output: output.type.tensor_type.ClearField("shape")),
        "its outputs are not",
    ),
    "no graph": (lambda model: model.ClearField("graph"), "it has 0 graphs"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_is_not_ours_is_refused(decoder: bytes, name: str) -> None:
    change, message = HOSTILE[name]
    model = onnx.load_model_from_string(decoder)
    change(model)
    assert message in refusal(model.SerializeToString())


def test_another_graph_of_the_bundle_is_refused(decoder: bytes) -> None:
    assert "its outputs are not latents" in refusal(decoder, "vae_encoder")


@pytest.mark.parametrize("data", [b"x", b"\x3a\xff", b"\x3b", b"\xff" * 11, b"", b"\x38\x01"])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    refusal(data)


def test_damaged_graphs_are_one_line_or_pass(decoder: bytes) -> None:
    """Whatever byte is wrong; onnx itself reads those that pass."""
    random.seed(0)
    messages = []
    for _ in range(400):
        data = bytearray(decoder)
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        try:
            check_graph(bytes(data), Path("x.onnx"), "vae_decoder", WEIGHTS)
        except KontextError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
    assert 20 < len(messages) < 380


# -- the same in C++ --


def cpp_table(file: str, name: str) -> str:
    """The text of a C++ table between its braces."""
    text = (CPP / file).read_text()
    return text[text.index(name) :].partition(";\n")[0]


def test_cpp_allows_the_same_operators() -> None:
    assert set(re.findall(r'"(\w+)"', cpp_table("graph_file.cpp", "operators = "))) == OPERATORS
    graphs = re.findall(r'\{"(\w+)", \{(\{.*\})\}\}', cpp_table("graph_file.cpp", "ranks = "))
    found = {
        graph: {n: int(rank) for n, rank in re.findall(r'"(\w+)", (\d)', outputs)}
        for graph, outputs in graphs
    }
    assert found == RANKS


def test_cpp_has_the_same_ranges() -> None:
    table = re.findall(r'\{"(\w+)", \{(-?\d+), (-?\d+)\}\}', cpp_table("manifest_ranges.hpp", "table = "))
    assert {name: (int(low), int(high)) for name, low, high in table} == RANGES


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("manifest_ranges.hpp", "most_sizes", MOST_SIZES),
        ("manifest_ranges.hpp", "most_files", MOST_FILES),
        ("manifest_ranges.hpp", "most_characters", MOST_CHARACTERS),
        ("tokenizer_limits.hpp", "max_components", MAX_COMPONENTS),
        ("tokenizer_limits.hpp", "max_growth", MAX_GROWTH),
    ],
)
def test_cpp_has_the_same_limits(file: str, name: str, value: int) -> None:
    found = re.search(rf"constexpr std::size_t {name} = (\d+);", (CPP / file).read_text())
    assert found is not None
    assert int(found[1]) == value
