"""A linear and a graph that any library quantizes in a moment, and a short recorded edit of the random checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kontext.bench.cases import scene_cases
from kontext.decibels import decibels
from kontext.runtime.backends.protocol import Backend
from kontext.runtime.bundle import Bundle
from kontext.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from kontext.bench.fidelity.benchmark import ReferenceRun
    from kontext.bench.fidelity.bits_per_weight import Layers
    from kontext.bench.fidelity.network_peers.graphs import GraphMethod
    from kontext.bench.fidelity.network_peers.torch_networks import TorchMethod

OUT, IN = 256, 192
"""Sizes of the linear and of the graph's product."""

STEPS = 2


def ratio(expected: Any, found: Any) -> float:
    expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    return decibels(np.square(expected).sum(), np.square(found - expected).sum())


@pytest.fixture(scope="session")
def one_linear() -> Callable[[TorchMethod], tuple[float, float]]:
    """Quantizes a linear [256, 192] with normal weights and inputs; returns its output's signal-to-noise ratio in dB
    and the bits per weight. The linear behind it must stay as it is."""
    torch = pytest.importorskip("torch")
    from kontext.bench.fidelity.quiet import quiet

    def measure(method: TorchMethod) -> tuple[float, float]:
        random = torch.Generator().manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(IN, OUT), torch.nn.Linear(OUT, 8))
        network = network.eval().requires_grad_(False)
        network[0].weight.copy_(torch.randn(OUT, IN, generator=random))
        inputs = torch.randn(2, 64, IN, generator=random)
        expected = network[0](inputs)
        with quiet():
            method.quantize(network, ["0"], lambda: network(inputs))
            found = network[0](inputs)
        assert method.stored_bits(network[1]) is None
        bits = method.stored_bits(network[0])
        assert bits is not None
        found = found.dequantize() if hasattr(found, "dequantize") else found
        return ratio(expected, found.detach().float()), bits / (OUT * IN)

    return measure


@pytest.fixture
def one_product(tmp_path: Path) -> Callable[[GraphMethod], tuple[float, float]]:
    """As `one_linear`, for a graph with two products, of which the second must stay as it is."""
    onnx = pytest.importorskip("onnx")
    from kontext.bench.fidelity.network_peers.graphs import Graph, products
    from kontext.bench.fidelity.quiet import quiet

    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape, np.float32) for shape in ((IN, OUT), (OUT, 80))]
    inputs = random.standard_normal((2, 64, IN), np.float32)
    float_ = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "first.weight"], ["xw"], name="first"),
            onnx.helper.make_node("Add", ["xw", "first.bias"], ["y"], name="third"),
            onnx.helper.make_node("MatMul", ["y", "second.weight"], ["yw"], name="second"),
            onnx.helper.make_node("Add", ["yw", "second.bias"], ["z"], name="fourth"),
        ],
        "two",
        [onnx.helper.make_tensor_value_info("x", float_, ["batch", "tokens", IN])],
        [
            onnx.helper.make_tensor_value_info("y", float_, ["batch", "tokens", OUT]),
            onnx.helper.make_tensor_value_info("z", float_, ["batch", "tokens", 80]),
        ],
        [
            onnx.numpy_helper.from_array(each, f"{name}.{kind}")
            for name, weight in zip(("first", "second"), weights, strict=True)
            for kind, each in (("weight", weight), ("bias", np.ones(weight.shape[1], np.float32)))
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=11)
    path = tmp_path / "two.onnx"
    onnx.save(model, path)

    def measure(method: GraphMethod) -> tuple[float, float]:
        found = products(model, ["first.weight"])
        assert found == {"first.weight": "first"}
        with quiet():
            method.load()
            run, bits = method.quantize(Graph(path, found, [{"x": inputs}]))
        assert list(bits) == ["first.weight"]
        outputs = run({"x": inputs})
        assert ratio(outputs["y"] @ weights[1] + 1, outputs["z"]) > 100
        return ratio(inputs @ weights[0] + 1, outputs["y"]), bits["first.weight"] / (IN * OUT)

    return measure


class Edit:
    """The random checkpoint's reference, the layers of the transformer and its modulation that fit groups of 64, and an
    edit of two steps."""

    def __init__(self, bundles: dict[str, Path]) -> None:
        from kontext.bench.fidelity import bits_per_weight
        from kontext.bench.fidelity.benchmark import reference_runs

        self.pipe = Pipeline.load(bundles["fp32"], backend="onnxruntime")
        int4, int8 = (Bundle.open(bundles[name]) for name in ("int4", "int8"))
        self.all_layers: Layers = bits_per_weight.common_layers(self.bundle, [int8])
        """Of the text encoders too."""
        found = bits_per_weight.common_layers(self.bundle, [int4])
        self.layers: Layers = {graph: found[graph] for graph in bits_per_weight.COUNTED}
        self.known: ReferenceRun = reference_runs(self.pipe, scene_cases(1, 0)[:1], STEPS, 0, lambda: None)[0]

    @property
    def bundle(self) -> Bundle:
        return self.pipe.bundle

    @property
    def backend(self) -> Backend:
        return self.pipe.backend

    def velocity_snr(self, backend: Backend) -> float:
        """Of a backend along the recorded trajectory, in dB."""
        from kontext.bench.fidelity.edit_runs import run_edit
        from kontext.export.calibration.teacher_forcing import TeacherForced

        forced = TeacherForced(backend, self.known.velocities)
        run_edit(Pipeline(self.bundle, forced), self.known.case, STEPS, self.known.seed)
        return decibels(*(float(sum(each.values()).sum()) for each in (forced.signal, forced.noise)))


@pytest.fixture(scope="session")
def edit(bundles: dict[str, Path]) -> Edit:
    pytest.importorskip("diffusers")
    return Edit(bundles)


@pytest.fixture
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrates with two edits of two steps."""
    from kontext.bench.fidelity.network_peers import calibration, graphs, torch_networks

    short = partial(calibration.run_scenes, count=2, steps=2)
    for module in (graphs, torch_networks):
        monkeypatch.setattr(module, "run_scenes", short)
