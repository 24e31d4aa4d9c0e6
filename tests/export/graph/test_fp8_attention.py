"""FP8 attention: the graph with its operands rounded against the network that rounds them in PyTorch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import onnx.reference  # noqa: E402
import onnx_ir as ir  # noqa: E402
import onnxruntime  # noqa: E402
from torch import Tensor  # noqa: E402

from kontext.export.graph import fp8_attention, interface  # noqa: E402
from kontext.model.build_network import build_network  # noqa: E402
from kontext.model.checkpoint import Checkpoint, load_state  # noqa: E402
from kontext.model.transformer import JointAttention  # noqa: E402
from kontext.quant.formats.fp8 import FP8  # noqa: E402
from kontext.quant.statistics import InputStatistics, Statistics  # noqa: E402

TOKENS = 12


@pytest.fixture(scope="module")
def network(tiny_checkpoint: Path) -> torch.nn.Module:
    result = build_network("transformer", Checkpoint.open(tiny_checkpoint).config).eval()
    result.load_state_dict(load_state(tiny_checkpoint)["transformer"])
    return result


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint: Path) -> dict[str, Tensor]:
    config = Checkpoint.open(tiny_checkpoint).config
    generator = torch.Generator().manual_seed(0)
    sizes = {"batch": 2, "target_tokens": TOKENS, "reference_tokens": 4}
    sizes["text_tokens + target_tokens + reference_tokens"] = config.text_encoder_2.max_length + TOKENS + 4
    shapes = interface.network_interface("transformer", config).inputs
    return {
        name: torch.randn(
            [sizes[each] if isinstance(each, str) else each for each in shape], generator=generator
        )
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def statistics(network: torch.nn.Module, inputs: dict[str, Tensor]) -> Statistics:
    result = Statistics({"transformer": {}})
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, JointAttention):

            def see(_module: object, operands: tuple[Tensor, ...], path: str = path) -> None:
                for name, operand in zip(fp8_attention.OPERANDS, operands, strict=True):
                    each = InputStatistics.empty(operand.shape[-1], moments=False)
                    each.add(operand, 0)
                    result.inputs["transformer"][f"{path}.{name}"] = each

            handles.append(module.register_forward_pre_hook(see))
    with torch.no_grad():
        network(*inputs.values())
    for handle in handles:
        handle.remove()
    return result


def rounded(x: Tensor, scale: float) -> Tensor:
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def quantized_graph(bundle: Path, checkpoint: Path, statistics: Statistics) -> onnx.ModelProto:
    model = ir.from_proto(onnx.load(bundle / "transformer.onnx"))
    fp8_attention.quantize_attention(model, Checkpoint.open(checkpoint).config.transformer, statistics)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    return result


def test_the_graph_is_the_network_with_rounded_operands(
    network: torch.nn.Module,
    inputs: dict[str, Tensor],
    statistics: Statistics,
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = quantized_graph(tiny_bundle, tiny_checkpoint, statistics)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    paths = iter(fp8_attention.attention_names(Checkpoint.open(tiny_checkpoint).config.transformer))

    def forward(_module: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        path, root = next(paths), q.shape[-1] ** -0.25
        seen = [statistics.inputs["transformer"][f"{path}.{name}"] for name in fp8_attention.OPERANDS]
        scales = [fp8_attention.static_scale(each, FP8) for each in seen]
        product = rounded(q * root, scales[0] * root) @ rounded(k * root, scales[1] * root).transpose(2, 3)
        weights = rounded(torch.softmax(product, -1), 1 / 448)
        return (weights @ rounded(v, scales[2])).transpose(1, 2).flatten(-2)

    with torch.no_grad():
        plain = network(*inputs.values()).numpy()
        monkeypatch.setattr(JointAttention, "forward", forward)
        expected = network(*inputs.values()).numpy()
    # Values in the middle of two E4M3 numbers may go either way, and are then a sixteenth apart.
    assert np.linalg.norm(ours - expected) < 0.3 * np.linalg.norm(plain - expected)
    assert 0 < np.linalg.norm(plain - expected) / np.linalg.norm(plain) < 0.1


def test_operands_are_rounded_where_engines_look(
    statistics: Statistics, tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    graph = quantized_graph(tiny_bundle, tiny_checkpoint, statistics).graph
    found = Counter(node.op_type for node in graph.node)
    assert found["Attention"] == 0
    assert (found["QuantizeLinear"], found["Softmax"]) == (12, 3)  # 1 double and 2 single blocks
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Softmax":
            product = made_by[node.input[0]]
            assert product.op_type == "MatMul"
            assert [made_by[name].op_type for name in product.input] == ["DequantizeLinear"] * 2
    names = [node.name for node in graph.node]
    assert len(names) == len(set(names))


def test_what_was_not_watched_is_a_fault(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    model = ir.from_proto(onnx.load(tiny_bundle / "transformer.onnx", load_external_data=False))
    config = Checkpoint.open(tiny_checkpoint).config.transformer
    with pytest.raises(RuntimeError, match=r"the statistics lack the operands of double_blocks\.0"):
        fp8_attention.quantize_attention(model, config, Statistics())
    with pytest.raises(RuntimeError, match="3 attentions, the network 4"):
        fp8_attention.quantize_attention(
            model, dataclasses.replace(config, num_single_blocks=3), Statistics()
        )


def test_bf16_is_rounded_in_fp32_between_casts() -> None:
    """By onnx's checker, types included, and its reference implementation: ONNX Runtime's CPU has no bf16."""
    bf16 = ir.DataType.BFLOAT16
    shape = ir.Shape([1, 2, TOKENS, 16])
    operands = [ir.Value(name=name, shape=shape, type=ir.TensorType(bf16)) for name in "qkv"]
    node = ir.node("Attention", operands, name="attention")
    end = ir.node("Identity", [node.outputs[0]])
    for each, name in ((node, "attended"), (end, "y")):
        each.outputs[0].name, each.outputs[0].shape, each.outputs[0].type = name, shape, ir.TensorType(bf16)
    graph = ir.Graph(operands, [end.outputs[0]], nodes=[node, end], opset_imports={"": 23}, name="attention")
    q, k, v = (torch.randn(shape.numpy(), generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    seen = []
    for operand in (q, k, v):
        seen.append(InputStatistics.empty(16, moments=False))
        seen[-1].add(operand, 0)
    fp8_attention.replace_attention(graph, node, "a", 16, seen)
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    onnx.checker.check_model(model, full_check=True)
    inputs = {name: x.numpy().astype(bf16.numpy()) for name, x in zip("qkv", (q, k, v), strict=True)}
    y = np.asarray(onnx.reference.ReferenceEvaluator(model).run(None, inputs)[0]).astype(np.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).numpy()
    assert np.linalg.norm(y - expected) / np.linalg.norm(expected) < 0.1  # E4M3 keeps 4 bits
