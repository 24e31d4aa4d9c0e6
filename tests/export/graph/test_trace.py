"""The six graphs in ONNX Runtime against the PyTorch networks, and the structure of the graphs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import onnxruntime  # noqa: E402

from kontext.export.graph import bind_weights, interface, trace  # noqa: E402
from kontext.export.weights.plan import plan_weights  # noqa: E402
from kontext.export.weights.write import weight_stream, write_stream  # noqa: E402
from kontext.model.build_network import build_network  # noqa: E402
from kontext.model.checkpoint import Checkpoint, load_state  # noqa: E402
from kontext.model.config import TransformerConfig  # noqa: E402
from kontext.model.networks import NETWORKS, linear_weights  # noqa: E402
from kontext.quant.formats import FORMATS  # noqa: E402
from kontext.quant.quantize import dequantize_weight, quantize_weight  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402
from kontext.runtime.backends.onnxruntime import sum_exactly  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # ONNX Runtime makes MatMulNBits of INT4 weights, by default with activations rounded to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    sum_exactly(options, path.read_bytes())
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def network(name: str, checkpoint: Path, quantization: str | None = None) -> torch.nn.Module:
    """A network in PyTorch, fp32; with `quantization`, its weights are quantized and dequantized."""
    opened = Checkpoint.open(checkpoint)
    result = build_network(name, opened.config).eval()
    state = load_state(checkpoint)[name]
    recipe = choose_recipe(tuple(NETWORKS), 1, None, quantization)
    linears = linear_weights(name, opened.config)
    for key in state:
        linear = key in linears
        layer = recipe.layer_of(name, key, tuple(state[key].shape)[:: -1 if linear else 1], linear)
        if layer.format in FORMATS:
            state[key] = dequantize_weight(quantize_weight(state[key].t(), layer, torch.float32), layer).t()
        if layer.activations == "int8":
            result.get_submodule(key.removesuffix(".weight")).register_forward_pre_hook(round_dynamically)
    result.load_state_dict(state)
    return result


def round_dynamically(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Tokens, rounded as by DynamicQuantizeLinear: 8 bits from the smallest to the largest value."""
    (x,) = inputs
    largest = x.abs().amax(-1, keepdim=True)
    units = x / largest
    low, high = units.min(), units.max()
    scale = (high - low) / 255
    zero = (-low / scale).round()
    return (((units / scale).round() + zero).clamp(0, 255).sub(zero) * scale * largest,)


def inputs(name: str, checkpoint: Path, **sizes: int) -> dict[str, torch.Tensor]:
    """Random inputs of a graph; `sizes` are those of varying dimensions."""
    config = Checkpoint.open(checkpoint).config
    sizes = {"text_tokens": config.text_encoder_2.max_length, **sizes}
    generator = torch.Generator().manual_seed(sum(sizes.values()))
    shapes = interface.network_interface(name, config)
    result = {}
    for key, shape in shapes.inputs.items():
        resolved = [
            size if isinstance(size, int) else eval(size, {"__builtins__": {}}, sizes)  # "8*latent_height"
            for size in shape
        ]
        if shapes.integers:
            vocabulary = min(config.text_encoder.vocab_size, config.text_encoder_2.vocab_size)
            result[key] = torch.randint(0, vocabulary, resolved, generator=generator)
        else:
            result[key] = torch.rand(resolved, generator=generator)
    return result


def close(
    name: str, path: Path, checkpoint: Path, module: torch.nn.Module, tolerance: float, **sizes: int
) -> None:
    given = inputs(name, checkpoint, **sizes)
    with torch.no_grad():
        expected = module(*given.values())
    outputs = session(path).run(None, {key: value.numpy() for key, value in given.items()})
    for ours, theirs in zip(outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == tuple(theirs.shape)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=tolerance, rtol=0)


SIZES = {
    "text_encoder": [{"batch": 1}, {"batch": 3}],
    "text_encoder_2": [{"batch": 1}, {"batch": 3}],
    "vae_encoder": [
        {"batch": 1, "latent_height": 2, "latent_width": 2},
        {"batch": 3, "latent_height": 5, "latent_width": 12},
    ],
    "vae_decoder": [
        {"batch": 1, "latent_height": 2, "latent_width": 2},
        {"batch": 3, "latent_height": 5, "latent_width": 12},
    ],
    "modulation": [{"rows": 1}, {"rows": 28}],
    "transformer": [
        {"batch": 1, "target_tokens": 16, "reference_tokens": 0},
        {"batch": 1, "target_tokens": 64, "reference_tokens": 64},
        {"batch": 2, "target_tokens": 1, "reference_tokens": 70},
        {"batch": 3, "target_tokens": 35, "reference_tokens": 1},
    ],
}


CASES = [(name, sizes) for name, cases in SIZES.items() for sizes in cases]


@pytest.mark.parametrize(("name", "sizes"), CASES, ids=str)
def test_fp32_graph_is_the_network(
    name: str, sizes: dict[str, int], tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    close(name, tiny_bundle / f"{name}.onnx", tiny_checkpoint, network(name, tiny_checkpoint), 1e-4, **sizes)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4"])
def test_quantized_graph_is_the_network_with_such_weights(
    name: str, quantization: str, tiny_checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(f"{quantization}_bundle")
    module = network(name, tiny_checkpoint, quantization)
    # A value in the middle of two integers may go to the other one, and so may those behind it.
    tolerance = 2e-2 if quantization == "int8" else 1e-4
    close(name, folder / f"{name}.onnx", tiny_checkpoint, module, tolerance, **SIZES[name][-1])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bundle", ["tiny_bundle", "fp8_bundle", "int4_bundle"])
def test_graphs_are_valid_small_and_anonymous(name: str, bundle: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(bundle)
    path = folder / f"{name}.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]
    assert not model.functions
    assert not model.metadata_props
    inline = sum(len(tensor.raw_data) for tensor in model.graph.initializer if not tensor.external_data)
    assert inline < 4096
    content = path.read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_attention_norms_and_rope_are_single_operators(tiny_bundle: Path) -> None:
    blocks, streams = 3, 4  # 1 double block of two streams and 2 single ones
    found = operators(tiny_bundle / "transformer.onnx")
    assert found["Attention"] == blocks
    assert found["RotaryEmbedding"] == 2 * blocks
    assert found["RMSNormalization"] == 2 * streams
    assert not {"Softmax", "SplitToSequence", "SequenceAt", "If", "Loop"} & found.keys()
    assert operators(tiny_bundle / "text_encoder_2.onnx")["Attention"] == 2
    assert operators(tiny_bundle / "vae_decoder.onnx")["GroupNormalization"] == 22


def test_linear_weights_reach_their_matmul_untransposed(
    tiny_bundle: Path, fp8_bundle: Path, int4_bundle: Path
) -> None:
    for name in NETWORKS:
        for folder in (tiny_bundle, fp8_bundle, int4_bundle):
            graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
            weight_names = {tensor.name for tensor in graph.initializer if tensor.external_data}
            made_by = {output: node for node in graph.node for output in node.output}
            for node in graph.node:
                assert node.op_type != "Transpose" or node.input[0] not in weight_names
                if node.op_type == "MatMul":
                    source = made_by.get(node.input[1])
                    assert node.input[1] in weight_names or (source and source.op_type == "DequantizeLinear")


def bound(name: str, checkpoint: Path, compute: str, folder: Path, with_fp8: bool = False) -> Path:
    """One network, traced here, on disk as in a bundle."""
    opened = Checkpoint.open(checkpoint)
    recipe = choose_recipe(tuple(NETWORKS), 1, compute, "fp8" if with_fp8 else None)
    linears = linear_weights(name, opened.config)
    plan = plan_weights(opened.networks[name], recipe, linears, interface.constants(name, opened.config))
    stream = weight_stream(plan, opened.networks[name])
    write_stream(stream, folder / "w.safetensors", 0, lambda _: None, lambda _: None)
    model = trace.trace_network(name, opened.config, recipe.compute[name])
    bind_weights.bind(model, {"w.safetensors": plan}, for_gpu=recipe.is_for_gpus)
    path = folder / f"{name}.onnx"
    path.write_bytes(bind_weights.serialize(model))
    onnx.checker.check_model(path, full_check=True)
    return path


def test_fp16_transformer_with_e4m3_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = bound("transformer", tiny_checkpoint, "fp16", tmp_path, with_fp8=True)
    module = network("transformer", tiny_checkpoint, "fp8")
    close("transformer", path, tiny_checkpoint, module, 3e-2, **SIZES["transformer"][1])


@pytest.mark.parametrize("with_fp8", [False, True], ids=["bf16", "fp8 and bf16"])
def test_bf16_modulation_keeps_timestep_and_guidance_in_fp32(
    tiny_checkpoint: Path, tmp_path: Path, with_fp8: bool
) -> None:
    graph = onnx.load(bound("modulation", tiny_checkpoint, "bf16", tmp_path, with_fp8)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    waves = [node for node in graph.node if node.op_type in ("Cos", "Sin")]
    assert len(waves) == 4
    assert {types[node.output[0]] for node in waves} == {onnx.TensorProto.FLOAT}
    matmuls = [node for node in graph.node if node.op_type == "MatMul"]
    assert {types[node.output[0]] for node in matmuls} == {onnx.TensorProto.BFLOAT16}


def test_a_model_without_guidance_keeps_the_input(tmp_path: Path, tiny_checkpoint: Path) -> None:
    import dataclasses

    config = Checkpoint.open(tiny_checkpoint).config
    narrow = TransformerConfig(64, 32, 1, 1, 1, 4.0, (8, 12, 12), 10_000.0, 48, 32, guidance_embed=False)
    model = trace.trace_network("modulation", dataclasses.replace(config, transformer=narrow), "fp32")
    assert [value.name for value in model.graph.inputs] == ["timestep", "guidance", "pooled"]
