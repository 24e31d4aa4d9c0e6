"""The memory model: real shapes, and activations against what is alive in the exported graph, tensor by tensor."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kontext.model.config import KontextConfig
from kontext.quant.memory import CPU, CUDA, Workload, demands, tokens_of, transformer_numbers

FLUX = KontextConfig()
BF16 = dict.fromkeys(
    ("text_encoder", "text_encoder_2", "vae_encoder", "vae_decoder", "modulation", "transformer"), "bf16"
)


def test_tokens_of_the_real_model() -> None:
    tokens = tokens_of(FLUX, Workload(1024, 1024))
    assert (tokens.target, tokens.reference, tokens.text, tokens.all) == (4096, 4096, 512, 8704)
    assert tokens_of(FLUX, Workload(1024, 1024, references=0)).all == 4608


def test_the_real_model_s_activations() -> None:
    """A single block's fused linear and its parts: 15 times 8704 tokens of 3072 channels in 16 bits are 0.80 GB."""
    need = demands(FLUX, BF16, Workload(1024, 1024), CUDA)
    assert 0.8e9 < need["transformer"].activations < 1.0e9
    # The decoder's last level has 256 channels of 1024 x 1024 at first.
    assert need["vae_decoder"].activations > 2 * 3 * 256 * 2**20
    assert all(demand.overhead == CUDA.overhead for demand in need.values())


@pytest.mark.parametrize(
    "more", [Workload(1024, 1024, references=2), Workload(1024, 1024, batch=2), Workload(1344, 1024)]
)
def test_more_work_needs_more(more: Workload) -> None:
    least, most = (
        demands(FLUX, BF16, work, CUDA)["transformer"].bytes for work in (Workload(1024, 1024), more)
    )
    assert most > least


def test_scores_exist_where_no_kernel_fuses_attention() -> None:
    tokens = tokens_of(FLUX, Workload(1024, 1024))
    fused, unfused = (transformer_numbers(FLUX, tokens, engine) for engine in (CUDA, CPU))
    assert unfused > 24 * 8704**2 > fused


def test_activations_are_what_is_alive_in_the_graph(tiny_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from kontext.model.diffusers_config import read_config

    model = onnx.load(tiny_bundle / "transformer.onnx", load_external_data=False)
    config = read_config(tiny_bundle.parent / "checkpoint")
    sizes = {"batch": 1, "target_tokens": 400, "reference_tokens": 400}
    text = config.text_encoder_2.max_length
    alive = most_alive(onnx, model, sizes, 800 + text)
    tokens = tokens_of(config, Workload(320, 320))
    assert tokens.all == 800 + text
    assert transformer_numbers(config, tokens, CUDA) == pytest.approx(alive, rel=0.1)


def most_alive(onnx: object, model: object, sizes: dict[str, int], tokens: int) -> int:
    """Numbers alive at once when the graph's nodes run in order and every tensor goes after its last use."""
    for value in model.graph.input:  # type: ignore[attr-defined]
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = sizes.get(dimension.dim_param, tokens)
    del model.graph.value_info[:]  # type: ignore[attr-defined]
    for value in model.graph.output:  # type: ignore[attr-defined]
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph  # type: ignore[attr-defined]
    counts = {
        value.name: math.prod(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.output]
    }
    # A reshaped tensor is the same memory, and so is the sum that is written over one of its terms.
    weights = {tensor.name for tensor in graph.initializer}
    owner: dict[str, str] = {}

    def origin(name: str) -> str:
        while name in owner:
            name = owner[name]
        return name

    last: dict[str, int] = {}
    for position, node in enumerate(graph.node):
        for name in node.input:
            last[name] = position
    for position, node in enumerate(graph.node):
        output = node.output[0]
        views = node.op_type in ("Reshape", "Unsqueeze", "Squeeze")
        over = [
            name
            for name in node.input
            if node.op_type in ("Add", "Mul", "Gelu")
            and name not in weights
            and last[name] == position
            and counts.get(name) == counts.get(output)
        ]
        if (views and node.input[0] not in weights) or over:
            owner[output] = (over or [node.input[0]])[0]
    until: dict[str, int] = {}
    for name, position in last.items():
        until[origin(name)] = max(until.get(origin(name), 0), position)
    alive: dict[str, int] = {}
    most = 0
    for position, node in enumerate(graph.node):
        for name in node.output:
            if name not in owner:
                alive[name] = counts.get(name, 0)
        most = max(most, sum(alive.values()))
        alive = {name: count for name, count in alive.items() if until.get(name, -1) > position}
    return most
