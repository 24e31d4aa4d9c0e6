"""What the compiler makes of each number format's form in a graph, by its own account: docs/engines.md's table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
trt = pytest.importorskip("tensorrt_rtx")

from kontext.export.engines.compiler import network_flags, parse_graph, set_target  # noqa: E402
from kontext.export.engines.fp4_quantization import use_fp4_quantizer  # noqa: E402
from kontext.export.engines.narrow_quantization import narrow_quantization  # noqa: E402
from kontext.export.engines.profiles import profiles  # noqa: E402
from kontext.export.engines.unscaled_products import unscaled_product  # noqa: E402
from kontext.export.graph import fp8_attention  # noqa: E402
from kontext.export.graph.bind_weights import ONNX_DTYPES  # noqa: E402
from kontext.export.graph.quantized_linear import packed_dtypes, quantize_linear  # noqa: E402
from kontext.model.dtypes import COMPUTE_DTYPES  # noqa: E402
from kontext.model.stored_dtypes import STORED_DTYPES  # noqa: E402
from kontext.quant.formats import COMPUTE, FORMATS  # noqa: E402
from kontext.quant.formats.base import InputRounding, TensorRT  # noqa: E402
from kontext.quant.quantize import quantize_weight  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402
from kontext.quant.weight_layout import weight_layout  # noqa: E402

TOKENS, INPUTS, OUTPUTS = 1024, 256, 512


def graph_of(inputs: list[Any], node: Any, shape: Any, weights: list[Any], replaced: bool) -> Any:
    """A graph of one node; where the node is `replaced`, its output must be another node's and not the graph's."""
    nodes = [node, ir.node("Identity", [node.outputs[0]], name="last")] if replaced else [node]
    for each, name in zip(reversed(nodes), ("y", "result"), strict=False):
        each.outputs[0].name, each.outputs[0].shape = name, shape
        each.outputs[0].type = inputs[0].type
    outputs = [nodes[-1].outputs[0]]
    return ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": 23}, name="g")


def linear(layer: Layer, compute: str) -> Any:
    """x @ w, its weight in the layer's form."""
    generator = torch.Generator().manual_seed(0)
    statistics = InputStatistics.empty(INPUTS)
    statistics.add(torch.randn(64, INPUTS, generator=generator), 0)
    stored = quantize_weight(
        torch.randn(INPUTS, OUTPUTS, generator=generator), layer, COMPUTE_DTYPES[compute], statistics
    )
    dtype = ONNX_DTYPES[STORED_DTYPES[compute]]
    x = ir.Value(name="x", shape=ir.Shape([TOKENS, INPUTS]), type=ir.TensorType(dtype))
    weight = ir.Value(name="w", shape=ir.Shape([INPUTS, OUTPUTS]), type=ir.TensorType(dtype))
    product = ir.node("MatMul", [x, weight], name="product")
    in_integers = layer.input_rounding is InputRounding.DYNAMIC
    replaced = layer.rank > 0 or in_integers or layer.centred or layer.has_static_inputs
    graph = graph_of([x], product, ir.Shape([TOKENS, OUTPUTS]), [weight], replaced)
    tensors, packed = {}, packed_dtypes(layer.format)
    for (ending, kind, shape), tensor in zip(weight_layout(layer, (INPUTS, OUTPUTS)), stored, strict=True):
        onnx_dtype = ONNX_DTYPES[STORED_DTYPES[compute] if kind == COMPUTE else kind]
        if ending in packed:
            onnx_dtype, shape = packed[ending], (*shape[:-1], 2 * shape[-1])
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        proto = onnx.helper.make_tensor(f"w{ending}", onnx_dtype.value, shape, raw, raw=True)
        tensors[ending] = ir.serde.deserialize_tensor(proto)
    quantize_linear(graph, weight, layer, tensors, for_gpu=True)
    proto = ir.to_proto(ir.Model(graph, ir_version=11))
    narrow_quantization(proto.graph)  # as the compiler does
    use_fp4_quantizer(proto)
    return proto


def one_attention(compute: str) -> Any:
    """Attention of 8 heads of 128 channels, its operands rounded to E4M3."""
    dtype = ONNX_DTYPES[STORED_DTYPES[compute]]
    shape = ir.Shape([1, 8, TOKENS, 128])
    operands = [ir.Value(name=name, shape=shape, type=ir.TensorType(dtype)) for name in "qkv"]
    node = ir.node("Attention", operands, name="attention")
    graph = graph_of(operands, node, shape, [], True)
    statistics = InputStatistics.empty(128, moments=False)
    statistics.add(torch.from_numpy(np.ones((4, 128), np.float32)), 0)
    fp8_attention.replace_attention(graph, node, "a", 128, [statistics] * 3)
    proto = ir.to_proto(ir.Model(graph, ir_version=11))
    narrow_quantization(proto.graph)
    return proto


class Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, _severity: Any, message: str) -> None:
        self.lines += message.splitlines()


def parsed(proto: Any) -> tuple[Log, Any, Any, bool, list[str]]:
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    done = parser.parse(proto.SerializeToString())
    return (
        log,
        builder,
        network,
        done,
        [parser.get_error(i).node_operator() for i in range(parser.num_errors)],
    )


def compiled(proto: Any, target: str) -> list[tuple[str, str, str]]:
    """The engine's layers that compute: kind, name, and the compiler's whole account."""
    log, builder, network, done, faults = parsed(proto)
    assert done, faults
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None, log.lines[-1]
    found = [
        (match[2], match[1], line)
        for line in log.lines
        if (match := re.search(r"Name: (\S+), LayerType: (\w+)", line))
    ]
    return [layer for layer in found if layer[0] not in ("signal", "wait")]


@pytest.mark.parametrize(
    ("layer", "target", "inside"),
    [(Layer("fp8"), "sm89", "FP8"), (Layer("int8"), "sm86", "Int8"), (Layer("int4"), "sm86", "Int4")],
)
def test_weights_are_unpacked_inside_the_product(layer: Layer, target: str, inside: str) -> None:
    ((kind, _, account),) = compiled(linear(layer, "bf16"), target)
    assert kind == "runtime_fusion"
    assert f"Datatype: {inside}" in account


def test_low_rank_branches_end_in_the_product_that_is_added() -> None:
    kinds = sorted(kind for kind, *_ in compiled(linear(Layer("int4", 32), "bf16"), "sm86"))
    assert kinds == ["gemm", "runtime_fusion", "runtime_fusion"]


@pytest.mark.parametrize(("compute", "written"), [("bf16", "BFloat16"), ("fp16", "Half")])
@pytest.mark.parametrize("centred", [False, True])
def test_static_inputs_make_a_product_in_fp8(compute: str, written: str, centred: bool) -> None:
    """Written in the graph's format before the columns' scales come. Centring costs no kernel."""
    rounding, product, scaling = compiled(linear(Layer("fp8", 0, "fp8", centred), compute), "sm89")
    assert product[0] == "gemm"
    before, after = product[2].split("Outputs:")
    assert "Datatype: FP8" in before
    assert f"Datatype: {written}" in after
    assert "Cast" in rounding[1]
    assert "Mul" in scaling[1]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("target", ["sm80", "sm86", "sm89"])
def test_static_inputs_make_a_product_in_int8(target: str, scaled: bool) -> None:
    """On GPUs without FP8 too. Centre and factors cost no kernel."""
    layer = Layer("int8", 0, "int8", scaled, "static", scaled)
    rounding, product, scaling = compiled(linear(layer, "bf16"), target)
    assert product[0] == "gemm"
    before, after = product[2].split("Outputs:")
    assert "Datatype: Int8" in before
    assert "Datatype: BFloat16" in after
    assert "Cast" in rounding[1]
    assert "Mul" in scaling[1]


@pytest.mark.parametrize("target", ["sm75", "sm86"])
def test_products_in_fp16_are_scaled_inside(target: str) -> None:
    """One scale for the product, folded into it; the columns' ratios come after it, with what bf16 has there. On Turing
    too."""
    proto = linear(Layer("int8", 0, "int8", True, "static", True), "fp16")
    (product,) = [node for node in proto.graph.node if node.op_type == "MatMul"]
    (unpack,) = [node for node in proto.graph.node if node.output[0] == product.input[1]]
    (unit,) = [each for each in proto.graph.initializer if each.name == unpack.input[1]]
    assert onnx.numpy_helper.to_array(unit) == 2.0**-11
    assert unscaled_product(proto.graph) is None
    rounding, gemm, scaling = compiled(proto, target)
    assert (rounding[0], gemm[0], scaling[0]) == ("kgen", "gemm", "kgen")
    before, after = gemm[2].split("Outputs:")
    assert before.count("Datatype: Int8") == 2
    assert "Datatype: Half" in after


@pytest.mark.parametrize(
    ("inputs", "target", "inside"),
    [("int8", "sm86", "Int8"), ("int8", "sm89", "Int8"), ("fp8", "sm89", "FP8"), ("fp8", "sm120", "FP8")],
)
@pytest.mark.parametrize("rank", [0, 32])
def test_int4_with_inputs_of_8_bits(inputs: str, target: str, inside: str, rank: int) -> None:
    """The engine holds 4 bits, one kernel unpacks them to 8, and the product is in 8 bits."""
    rounding = "static" if inputs == "int8" else ""
    layers = compiled(linear(Layer("int4", rank, inputs, True, rounding, inputs == "int8"), "bf16"), target)
    unpacking = [account for _, _, account in layers if "Datatype: Int4" in account.split("Outputs:")[0]]
    assert [f"Datatype: {inside}" in account.split("Outputs:")[1] for account in unpacking] == [True]
    products = [account.split("Outputs:")[0] for kind, _, account in layers if kind == "gemm"]
    assert sum(account.count(f"Datatype: {inside}") == 2 for account in products) == 1


@pytest.mark.parametrize(("compute", "written"), [("bf16", "BFloat16"), ("fp16", "Half")])
@pytest.mark.parametrize("rank", [0, 32])
def test_inputs_in_blocks_make_a_product_in_fp4(compute: str, written: str, rank: int) -> None:
    """Both operands in E2M1 with E4M3 scales, scaled inside: written in the graph's format without leaving its range.
    The branch takes inputs in 16 bits."""
    layers = compiled(linear(Layer("nvfp4", rank, "nvfp4", centred=True), compute), "sm120")
    (product,) = [account for kind, _, account in layers if kind == "gemm" and "FP4E2M1" in account]
    before, after = product.split("Outputs:")
    assert (before.count("Datatype: FP4E2M1"), before.count("Datatype: FP8")) == (2, 2)
    assert f"Datatype: {written}" in after
    rounding = [account.split("Outputs:") for _, _, account in layers if account is not product]
    (rounding,) = [parts for parts in rounding if "Datatype: FP4E2M1" in parts[1]]
    assert f"Datatype: {written}" in rounding[0]
    assert "Datatype: FP8" in rounding[1]
    assert sum("FP4E2M1" in account for *_, account in layers) == 2
    others = [account for kind, _, account in layers if kind != "kgen" and account is not product]
    assert len(others) == (2 if rank else 0)


@pytest.mark.parametrize(("format", "target"), [("nvfp4", "sm120"), ("nf4", "sm89")])
def test_weights_that_are_unpacked_first(format: str, target: str) -> None:
    kinds = [kind for kind, *_ in compiled(linear(Layer(format), "bf16"), target)]
    assert kinds == ["kgen", "gemm"]


@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_fp8_attention_is_one_kernel(target: str) -> None:
    layers = compiled(one_attention("bf16"), target)
    (kernel,) = [layer for layer in layers if "mha" in layer[1]]
    assert kernel[2].split("Outputs:")[0].count("Datatype: FP8") == 3
    assert not any(kind == "gemm" for kind, *_ in layers)


REFUSED = [Layer(name) for name, format in FORMATS.items() if format.tensorrt is TensorRT.REFUSED]


@pytest.mark.parametrize("layer", [*REFUSED, Layer("int8", 0, "int8")], ids=str)
def test_what_is_refused_before_the_compiler_is_what_the_parser_refuses(layer: Layer) -> None:
    assert not parsed(linear(layer, "fp16"))[3]


def test_every_linear_of_a_transformer_is_a_product_in_fp4(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with inputs that are rounded, by the nodes that each product is made of. As inputs, weights are copied
    first, in 4 bits. Without branches, the compiler slices constant weights of queries, keys and values, and unpacks
    them."""
    from kontext.bench.fullsize import engines
    from kontext.export.graph.interface import network_interface
    from kontext.model.checkpoint import Checkpoint

    monkeypatch.setattr(engines, "usual_rank", lambda _: 8)
    config = Checkpoint.open(tiny_checkpoint).config
    engines.write_graph(tmp_path, config, "transformer", "bf16-nvfp4-inputs")
    graph = tmp_path / "transformer.onnx"
    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    rounded = [
        node.name.rpartition("/")[0]
        for node in nodes
        if any(each.name == "output_dtype" for each in node.attribute)
    ]
    assert len(rounded) == 8 * config.transformer.num_double_blocks + 2 * config.transformer.num_single_blocks
    scales = {f"{name}_{scale}" for name in rounded for scale in ("global_scale", "input_scale")}
    inputs = network_interface("transformer", config).inputs
    (shapes, *_) = profiles(engines.outline(tmp_path, config), "transformer", 1, inputs)
    for weights in ("inside", "bound"):
        log = Log()
        builder = trt.Builder(log)
        network = builder.create_network(network_flags(trt))
        names = parse_graph(trt, network, log, graph, weights)
        assert scales.isdisjoint(names)
        options = builder.create_builder_config()
        set_target(trt, options, "sm120")
        options.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.inputs.items():
            profile.set_shape(name, *sizes)
        options.add_optimization_profile(profile)
        assert builder.build_serialized_network(network, options) is not None, log.lines[-1]
        products = [line for line in log.lines if "LayerType: gemm" in line]
        made = " ".join(line for line in products if line.count("Datatype: FP4E2M1") == 2)
        assert [name for name in rounded if f"[ONNX Layer: {name}/" not in made] == []
