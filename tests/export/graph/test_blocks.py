"""Repeated blocks: each has its own weights, and no replacement operator or computed shape is left in a graph."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import onnx_ir as ir  # noqa: E402
import onnxruntime  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from kontext.export.graph import blocks, passes  # noqa: E402
from kontext.export.graph.blocks import RepeatedBlock, repeated_blocks  # noqa: E402
from kontext.export.graph.trace import quiet, to_onnx  # noqa: E402
from kontext.model.build_network import build_network  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS, weight_shapes  # noqa: E402


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_is_used_once_by_its_own_block(
    name: str, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    graph = onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False).graph
    used = [tensor for node in graph.node for tensor in node.input]
    for weight in weight_shapes(name, config):
        assert used.count(weight) == 1, weight


@pytest.mark.parametrize("name", NETWORKS)
def test_kinds_name_blocks_that_are_there(name: str, tiny_checkpoint: Path) -> None:
    network = build_network(name, Checkpoint.open(tiny_checkpoint).config)
    for kind in repeated_blocks(name, Checkpoint.open(tiny_checkpoint).config):
        blocks = list(network.get_submodule(kind.path).children())
        assert len({type(block) for block in blocks}) == 1
        assert 1 <= kind.outputs <= len(kind.inputs)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "transformer"])
def test_reshapes_have_constant_shapes(name: str, tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    shapes = [node.input[1] for node in graph.node if node.op_type == "Reshape"]
    assert shapes
    assert set(shapes) <= constants


class Pair(nn.Module):
    """A block of two streams, which adds a table to one of them and joins them for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.randn(4, 4) / 2) for _ in range(2))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat((text, image), dim=1) @ self.left + torch.arange(4) / 3
        text, image = joined.split((3, image.shape[1]), dim=1)
        return image.tanh(), text @ self.right


class Scale(nn.Module):
    """A block of one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).relu() + x


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(Pair() for _ in range(3))
        self.scales = nn.ModuleList(Scale() for _ in range(2))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        for pair in self.pairs:
            image, text = pair(image, text)
        x = torch.cat((text, image), dim=1)
        for scale in self.scales:
            x = scale(x)
        return x


KINDS = [
    RepeatedBlock(
        "pairs", "Pair", {"image": ("batch", "target_tokens", 4), "text": ("batch", 3, 4)}, outputs=2
    ),
    RepeatedBlock("scales", "Scale", {"x": ("batch", "target_tokens", 4)}),
]


def test_a_network_of_operators_is_the_network(tiny_checkpoint: Path) -> None:
    """Each block computes with its own weights behind one traced definition, at any length; the oracle is PyTorch."""
    config = Checkpoint.open(tiny_checkpoint).config
    torch.manual_seed(5)
    network = Network().eval().requires_grad_(False)
    traced, times = copy.deepcopy(network), []

    def trace(block: nn.Module, kind: RepeatedBlock) -> ir.Model:
        times.append(kind.operator)
        inputs = {key: (shape, torch.float32) for key, shape in kind.inputs.items()}
        return to_onnx(block, inputs, [f"output_{index}" for index in range(kind.outputs)], config)

    with quiet():
        definitions = blocks.replace_repeated(traced, KINDS, trace)
        model = to_onnx(
            traced, {key: (shape, torch.float32) for key, shape in KINDS[0].inputs.items()}, ["y"], config
        )
    assert times == ["Pair", "Scale"]
    found = [node.op_type for node in model.graph if node.domain == blocks.DOMAIN]
    assert found == ["Pair"] * 3 + ["Scale"] * 2
    blocks.add_definitions(model, definitions)
    passes.optimize(model)
    assert list(model.graph.opset_imports) == [""]
    state = network.state_dict()
    assert {name for name, value in model.graph.initializers.items() if value.const_value is None} == set(
        state
    )
    for name, weight in state.items():
        model.graph.initializers[name].const_value = ir.tensor(weight.numpy())
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for batch, tokens in ((1, 1), (2, 7)):
        image, text = torch.randn(batch, tokens, 4), torch.randn(batch, 3, 4)
        (y,) = session.run(None, {"image": image.numpy(), "text": text.numpy()})
        np.testing.assert_allclose(y, network(image, text).numpy(), rtol=1e-5, atol=1e-5)


def test_dimensions_of_two_traces_are_kept_apart() -> None:
    graph = ir.from_proto(
        onnx.parser.parse_graph("g (float[s1, 4] x) => (float[s1, s2] y) { a = Neg (x)  y = Transpose (a) }")
    )
    blocks.rename_dimensions(graph, "Pair")
    assert str(graph.inputs[0].shape) == "[Pair_s1,4]"
    assert str(graph.outputs[0].shape) == "[Pair_s1,Pair_s2]"
