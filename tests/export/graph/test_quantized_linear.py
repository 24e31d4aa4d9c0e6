"""Quantized linears in graphs: every format and what goes with it, run by ONNX Runtime against the same in PyTorch."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch import Tensor  # noqa: E402

from kontext.export.graph.bind_weights import ONNX_DTYPES  # noqa: E402
from kontext.export.graph.quantized_linear import packed_dtypes, quantize_linear  # noqa: E402
from kontext.model.dtypes import COMPUTE_DTYPES  # noqa: E402
from kontext.model.stored_dtypes import STORED_DTYPES  # noqa: E402
from kontext.quant.formats import COMPUTE, FORMATS  # noqa: E402
from kontext.quant.formats.base import InputRounding, OnnxForm  # noqa: E402
from kontext.quant.quantize import dequantize_weight, quantize_weight  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402
from kontext.quant.weight_layout import weight_layout  # noqa: E402
from kontext.runtime.backends.onnxruntime import sum_exactly  # noqa: E402

INPUTS, OUTPUTS = 128, 96
PRECISIONS = ["fp32", "fp16"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs() -> Tensor:
    x = noise(2, 5, INPUTS, seed=1)
    x[..., 7] *= 30
    return x


def stored(layer: Layer, compute: str) -> list[Tensor]:
    statistics = InputStatistics.empty(INPUTS)
    statistics.add(inputs(), 0)
    return quantize_weight(noise(INPUTS, OUTPUTS) / 11, layer, COMPUTE_DTYPES[compute], statistics)


def model(layer: Layer, compute: str) -> onnx.ModelProto:
    """y = x @ W + b, its W in the layer's form."""
    dtype = ONNX_DTYPES[STORED_DTYPES[compute]]
    x = ir.Value(name="x", shape=ir.Shape(["batch", "tokens", INPUTS]), type=ir.TensorType(dtype))
    weight = ir.Value(name="w", shape=ir.Shape([INPUTS, OUTPUTS]), type=ir.TensorType(dtype))
    bias = ir.Value(name="b", shape=ir.Shape([OUTPUTS]), type=ir.TensorType(dtype))
    bias.const_value = ir.Tensor(np.ones(OUTPUTS, dtype.numpy()), name="b")
    product = ir.node("MatMul", [x, weight], name="product")
    total = ir.node("Add", [product.outputs[0], bias], name="total")
    product.outputs[0].name, total.outputs[0].name = "xw", "y"
    for node in (product, total):
        node.outputs[0].shape = ir.Shape(["batch", "tokens", OUTPUTS])
        node.outputs[0].type = ir.TensorType(dtype)
    graph = ir.Graph(
        [x],
        [total.outputs[0]],
        nodes=[product, total],
        initializers=[weight, bias],
        opset_imports={"": 23},
        name="linear",
    )
    tensors, packed = {}, packed_dtypes(layer.format)
    for (ending, kind, shape), tensor in zip(
        weight_layout(layer, (INPUTS, OUTPUTS)), stored(layer, compute), strict=True
    ):
        onnx_dtype = ONNX_DTYPES[STORED_DTYPES[compute] if kind == COMPUTE else kind]
        if ending in packed:
            onnx_dtype, shape = packed[ending], (*shape[:-1], 2 * shape[-1])
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        proto = onnx.helper.make_tensor(f"w{ending}", onnx_dtype.value, shape, raw, raw=True)
        tensors[ending] = ir.serde.deserialize_tensor(proto)
    quantize_linear(graph, weight, layer, tensors, for_gpu=compute != "fp32")
    result = ir.to_proto(ir.Model(graph, ir_version=10 if layer.format != "nvfp4" else 11))
    onnx.checker.check_model(result, full_check=True)
    # The stored values keep the weight's name: only what unpacks them reads them, or an integer product.
    readers = {node.op_type for node in result.graph.node if "w" in node.input}
    coded = FORMATS[layer.format].onnx_form is OnnxForm.CODEBOOK
    unpacks = {"Cast"} if coded else {"DequantizeLinear"}
    in_integers = layer.input_rounding is InputRounding.DYNAMIC
    assert readers == ({"MatMulInteger"} if in_integers else unpacks)
    return result


def run(proto: onnx.ModelProto, x: np.ndarray, *, wide_sums: bool = False) -> np.ndarray:
    return session(proto, wide_sums=wide_sums).run(None, {"x": x})[0]


def session(proto: onnx.ModelProto, *, wide_sums: bool = False) -> onnxruntime.InferenceSession:
    """With `wide_sums`, products of INT8 are added in 32 bits on processors without VNNI too, which bundles cannot ask
    for where they also have INT8 weights whose inputs are not rounded."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    data = proto.SerializeToString()
    sum_exactly(options, data)
    if wide_sums:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def expected(layer: Layer, compute: str) -> Tensor:
    """The same in fp32 PyTorch: inputs centred, scaled and rounded as the layer says, the weight as it is stored. What
    is rounded to integers is in what the graph computes in: a value that is rounded there may be another integer."""
    dtype = COMPUTE_DTYPES[compute]
    tensors = stored(layer, compute)
    found = {
        ending: tensor
        for (ending, *_), tensor in zip(weight_layout(layer, (INPUTS, OUTPUTS)), tensors, strict=True)
    }
    x = inputs().to(dtype).float()
    plain = dequantize_weight(tensors, layer)
    offset = torch.ones(OUTPUTS)
    if layer.centred:
        x = (x - found["_input_mean"].float()).to(dtype).float()
        offset = offset + found["_mean_output"].float()
    if layer.scaled:
        x = (x * found["_input_factor"].float()).to(dtype).float()
    branch = found["_down"].float() @ found["_up"].float() if layer.rank else torch.zeros_like(plain)
    rounded = x
    if layer.activations == "fp8":
        scale = found["_input_scale"].float()
        rounded = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    elif layer.has_static_inputs:
        scale = found["_input_scale"].float()
        rounded = (x / scale).round().clamp(-128, 127) * scale
    elif layer.activations == "nvfp4":
        rounded = torch.from_numpy(in_blocks(x.numpy(), found["_input_scale"].numpy())).float()
    elif layer.activations == "int8" and compute != "fp32":  # the form for GPUs: symmetric
        scale = x.abs().amax(-1, keepdim=True) / 127
        rounded = (x / scale).round() * scale
    elif layer.activations == "int8":
        largest = x.abs().amax(-1, keepdim=True)
        units = x / largest
        low, high = units.min(), units.max()
        scale = (high - low) / 255
        zero = (-low / scale).round()
        rounded = ((units / scale).round() + zero).clamp(0, 255).sub(zero) * scale * largest
    return rounded @ (plain - branch) + x @ branch + offset


def in_blocks(x: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The two levels of scales in float64, where a quotient is next to no middle of two codes; E4M3 by PyTorch."""
    blocks = x.astype(np.float64).reshape(*x.shape[:-1], -1, 16)
    scales = np.abs(blocks).max(-1, keepdims=True) / (6 * whole.astype(np.float64))
    steps = torch.from_numpy(scales).clamp(max=448).to(torch.float8_e4m3fn).double().numpy() * whole
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    units = np.abs(blocks / np.maximum(steps, 1e-300))
    nearest = values[np.abs(units[..., None] - values).argmin(-1)]
    return (np.sign(blocks) * nearest * steps).reshape(x.shape)


LAYERS = [
    *(Layer(name, rank) for name, rank in itertools.product(FORMATS, (0, 8)) if name != "nvfp4"),
    Layer("fp8", 0, "fp8"),
    Layer("fp8", 8, "fp8"),
    Layer("int8", 0, "int8"),
    Layer("int8", 0, "int8", centred=True),
    Layer("int8", 8, "int8", centred=True),
    Layer("fp8", 0, "fp8", centred=True),
    Layer("fp8", 8, "fp8", centred=True),
    Layer("int8", 0, "int8", rounding="static"),
    Layer("int8", 0, "int8", True, "static", True),
    Layer("int8", 8, "int8", True, "static", True),
    Layer("int4", 0, "fp8", True),
    Layer("int4", 8, "fp8", True),
    Layer("int4", 0, "int8", True, "static", True),
    Layer("int4", 8, "int8", True, "static", True),
]


@pytest.mark.parametrize("compute", PRECISIONS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_graph_computes_what_is_meant(layer: Layer, compute: str) -> None:
    x = inputs().to(COMPUTE_DTYPES[compute]).numpy()
    wide_sums = layer.format == "int8" and layer.rounding == "static" and compute == "fp32"
    y = torch.from_numpy(run(model(layer, compute), x, wide_sums=wide_sums).astype(np.float32))
    error = float((y - expected(layer, compute)).norm() / y.norm())
    # In fp16 a value may round to another E4M3 or INT8 neighbour than in fp32; multiples of INT4's scale often lie in
    # the middle between two of E4M3.
    near = 2e-2 if layer.is_unpacked_to_inputs else 4e-3 if layer.activations else 1.5e-3
    assert error < (3e-6 if compute == "fp32" else near)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_bf16_by_the_reference_implementation(layer: Layer) -> None:
    """ONNX Runtime's CPU does not multiply in bf16."""
    dtype = ONNX_DTYPES["BF16"].numpy()
    y = ReferenceEvaluator(model(layer, "bf16")).run(None, {"x": inputs().numpy().astype(dtype)})[0]
    y = torch.from_numpy(np.asarray(y).astype(np.float32))
    error = float((y - expected(layer, "bf16")).norm() / y.norm())
    assert error < (2e-2 if layer.is_unpacked_to_inputs else 8e-3)  # bf16 keeps 8 bits


def test_bf16_is_quantized_in_fp32_between_casts() -> None:
    """What ONNX Runtime's CUDA provider has kernels for (tests/install/test_onnxruntime_gpu.py)."""
    layer = Layer("fp8", 0, "fp8")
    found = {
        (node.op_type, initializer.data_type)
        for proto in [model(layer, "bf16")]
        for node in proto.graph.node
        for initializer in proto.graph.initializer
        if initializer.name in node.input[1:2]
    }
    assert ("DequantizeLinear", ONNX_DTYPES["BF16"].value) not in found
    assert ("QuantizeLinear", ONNX_DTYPES["BF16"].value) not in found


NVFP4_LAYERS = [
    Layer("nvfp4"),
    Layer("nvfp4", 8),
    Layer("nvfp4", 0, "nvfp4"),
    Layer("nvfp4", 8, "nvfp4", centred=True),
    Layer("nvfp4", 8, "nvfp4", True, "", True),
]


@pytest.mark.parametrize("layer", NVFP4_LAYERS, ids=str)
def test_nvfp4_by_the_reference_implementation(layer: Layer) -> None:
    y = ReferenceEvaluator(model(layer, "fp32")).run(None, {"x": inputs().numpy()})[0]
    error = np.linalg.norm(y - expected(layer, "fp32").numpy()) / np.linalg.norm(y)
    assert error < 3e-6


def operators(layer: Layer, compute: str) -> Counter[str]:
    return Counter(node.op_type for node in model(layer, compute).graph.node)


def test_forms_are_those_that_engines_fuse() -> None:
    assert operators(Layer("int4"), "fp16") == {"DequantizeLinear": 1, "MatMul": 1, "Add": 1}
    rounded = Layer("fp8", 0, "fp8")
    product = Counter({"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1, "Add": 1})
    assert operators(rounded, "fp32") == product
    unpacked = Counter({"QuantizeLinear": 1, "DequantizeLinear": 1})
    assert operators(Layer("int4", 0, "fp8"), "fp32") == product + unpacked
    # In fp16 the columns' scales are multiplied after the product, over one that is multiplied inside.
    assert operators(rounded, "fp16") == product + Counter(Mul=2)
    assert operators(Layer("int8", 0, "int8", rounding="static"), "fp16") == operators(rounded, "fp16")
    found = operators(Layer("int8", 0, "int8"), "fp32")
    assert found == {
        "ReduceMax": 1,
        "ReduceMin": 1,
        "Neg": 1,
        "Max": 1,
        "Div": 1,
        "DynamicQuantizeLinear": 1,
        "MatMulInteger": 1,
        "Cast": 1,
        "Mul": 3,
        "Add": 1,
    }
    assert operators(Layer("nvfp4"), "fp32")["DequantizeLinear"] == 2


@pytest.mark.parametrize(
    ("layer", "kernel"), [(Layer("int4"), "MatMulNBits"), (Layer("uint4"), "MatMulNBits")]
)
def test_onnx_runtime_fuses_four_bits(layer: Layer, kernel: str, tmp_path: object) -> None:
    assert kernel in optimized(layer, tmp_path)


def test_onnx_runtime_fuses_integer_products(tmp_path: object) -> None:
    found = optimized(Layer("int8", 0, "int8"), tmp_path)
    assert found == {"ReduceMax", "ReduceMin", "Neg", "Max", "Div", "DynamicQuantizeMatMul", "Mul"}


def test_onnx_runtime_fuses_products_of_static_inputs(tmp_path: object) -> None:
    """One integer product; centre and factors are one pass before it each."""
    found = optimized(Layer("int8", 0, "int8", True, "static", True), tmp_path)
    assert found == {"Sub", "Mul", "QuantizeLinear", "MatMulIntegerToFloat"}


@pytest.mark.parametrize("compute", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("hint", ["f32", "bf16"])
def test_openvino_multiplies_static_inputs_in_integers(hint: str, compute: str) -> None:
    """By its own account of the compiled graph: centre, factors and rounding are one pass that writes INT8."""
    openvino = pytest.importorskip("openvino")
    from kontext.runtime.backends.openvino.rewrite import rewrite

    core = openvino.Core()
    layer = Layer("int8", 0, "int8", True, "static", True)
    graph = core.read_model(model(layer, compute).SerializeToString())
    graph.get_parameters()[0].set_element_type(openvino.Type.f32)  # a bundle's inputs are fp32
    rewrite(graph)
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    written = {node["layerType"].value: node["outputPrecisions"].value for node in nodes}
    assert written["Eltwise"] == "i8"
    (product,) = [node for node in nodes if node["layerType"].value == "FullyConnected"]
    assert product["primitiveType"].value.endswith("_i8")


def test_centring_is_one_subtraction(tmp_path: object) -> None:
    """What the mean makes is in the bias once the graph is loaded."""
    nodes = Counter(
        node.op_type for node in optimized_graph(Layer("fp8", 0, "fp8", centred=True), tmp_path).node
    )
    plain = Counter(node.op_type for node in optimized_graph(Layer("fp8", 0, "fp8"), tmp_path).node)
    assert nodes - plain == {"Sub": 1}


def test_centring_goes_into_a_modulated_norm() -> None:
    """x = normed * scale + shift, with a shift for each picture: the mean leaves the shift, and no token is touched."""
    sizes = {"normed": [2, 5, INPUTS], "shift": [2, 1, INPUTS], "x": [2, 5, INPUTS], "w": [INPUTS, OUTPUTS]}
    values = {
        name: ir.Value(name=name, shape=ir.Shape(size), type=ir.TensorType(ir.DataType.FLOAT))
        for name, size in sizes.items()
    }
    modulate = ir.node("Add", [values["normed"], values["shift"]], outputs=[values["x"]], name="modulate")
    product = ir.node("MatMul", [values["x"], values["w"]], name="product")
    result = ir.node("Identity", [product.outputs[0]], name="result")
    product.outputs[0].name, result.outputs[0].name = "xw", "y"
    result.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [values["normed"], values["shift"]],
        [result.outputs[0]],
        nodes=[modulate, product, result],
        initializers=[values["w"]],
        opset_imports={"": 23},
        name="linear",
    )
    layer = Layer("int8", 0, "int8", centred=True)
    tensors = {
        ending: ir.tensor(tensor.numpy(), name=f"w{ending}")
        for (ending, *_), tensor in zip(
            weight_layout(layer, (INPUTS, OUTPUTS)), stored(layer, "fp32"), strict=True
        )
    }
    quantize_linear(graph, values["w"], layer, tensors, for_gpu=False)
    subtractions = [node for node in graph if node.op_type == "Sub"]
    assert [node.inputs[0] is values["shift"] for node in subtractions] == [True]
    normed, shift = inputs(), noise(2, 1, INPUTS, seed=4)
    feeds = {"normed": normed.numpy(), "shift": shift.numpy()}
    y = session(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, feeds)[0]
    expected = (normed + shift) @ (noise(INPUTS, OUTPUTS) / 11)
    assert np.linalg.norm(y - expected.numpy()) / np.linalg.norm(y) < 0.02


def optimized(layer: Layer, folder: object) -> set[str]:
    return {node.op_type for node in optimized_graph(layer, folder).node} - {"Add"}


def optimized_graph(layer: Layer, folder: object) -> onnx.GraphProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{folder}/optimized.onnx"
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        model(layer, "fp32").SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return onnx.load(options.optimized_model_filepath).graph


def test_a_shared_weight_is_a_fault() -> None:
    x = ir.Value(name="x", shape=ir.Shape([4, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="w", shape=ir.Shape([64, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [ir.node("MatMul", [x, weight]) for _ in range(2)]
    graph = ir.Graph(
        [x], [node.outputs[0] for node in nodes], nodes=nodes, initializers=[weight], opset_imports={"": 23}
    )
    with pytest.raises(RuntimeError, match="used by 2 nodes"):
        quantize_linear(graph, weight, Layer("int8"), {}, for_gpu=False)
