"""The memory model: real shapes, and activations against what is alive in the exported graph, tensor by tensor."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kontext.model.config import KontextConfig
from kontext.quant.gpus import find_target
from kontext.quant.memory import (
    CPU,
    CUDA,
    Executor,
    Workload,
    clip_numbers,
    demands,
    executor_of,
    modulation_numbers,
    resident_bytes,
    t5_numbers,
    tokens_of,
    transformer_numbers,
)

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


ONE = Workload(1024, 1024)
SMALL = Workload(512, 256, references=3, batch=2, steps=4)
MODULATION = (12 * 19 + 3 * 38 + 2) * 3072
"""Numbers of a row's modulations: six for each stream of a double block, three for a single one, two at the end."""


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        # 4096 tokens of target and of reference, 64 channels each; text 512 x 4096; fp32 outside of the graphs.
        (
            ONE,
            {
                "text_encoder": 4 * 768,
                "text_encoder_2": 4 * (512 * 4096 + 768),
                "vae_encoder": 4 * (3 * 1024 * 1024 + 4096 * 64),
                "modulation": 4 * 28 * MODULATION,
                # reference, text, RoPE's table of 64 cos and 64 sin, modulations, latents and velocity
                "transformer": 4 * (4096 * 64 + 512 * 4096 + 768 + 8704 * 128 + MODULATION + 2 * 4096 * 64),
                "vae_decoder": 4 * (3 * 1024 * 1024 + 4096 * 64),
            },
        ),
        # 32 x 16 tokens of target, three times as many of references, for each of two rows
        (
            SMALL,
            {
                "text_encoder": 2 * 4 * 768,
                "text_encoder_2": 2 * 4 * (512 * 4096 + 768),
                "vae_encoder": 4 * (3 * 512 * 256 + 512 * 64),
                "modulation": 4 * 4 * 2 * MODULATION,
                "transformer": 4 * 2560 * 128
                + 2 * 4 * (3 * 512 * 64 + 512 * 4096 + 768 + MODULATION + 2 * 512 * 64),
                "vae_decoder": 4 * (3 * 512 * 256 + 512 * 64),
            },
        ),
    ],
    ids=["one edit", "two small ones"],
)
def test_what_waits_between_the_networks_by_hand(work: Workload, expected: dict[str, int]) -> None:
    need = demands(FLUX, BF16, work, CUDA)
    assert {name: demand.held for name, demand in need.items()} == expected
    # On a CPU what other stages have made lies in the same memory.
    text, references = expected["text_encoder_2"], {ONE: 4096, SMALL: 2 * 3 * 512}[work] * 64 * 4
    waiting = {
        "text_encoder": 0,
        "text_encoder_2": 0,
        "vae_encoder": text,
        "modulation": text + references + expected["modulation"],
        "transformer": expected["modulation"],
        "vae_decoder": expected["modulation"] + text + references,
    }
    on_host = demands(FLUX, BF16, work, CPU)
    assert {name: demand.held - expected[name] for name, demand in on_host.items()} == waiting


WIDE = 512 * (2 * 4096 + 3 * 10240)
"""T5's residual and its gated layer's three wide tensors."""

TABLE = 64 * 512 * 512
"""T5's bias of every head; scores are as large."""

CLIP = 77 * (2 * 768 + 3 * 3072)

SINGLE = 3072 + 2 * (3 * 3072 + 12288)
"""A single block's residual, and q, k, v and the MLP in one tensor and in parts, of each token."""

INPUTS = 512 * 4096 + MODULATION


@pytest.mark.parametrize(
    ("work", "executor", "numbers"),
    [
        (
            ONE,
            CUDA,
            {
                "text_encoder": CLIP,
                "text_encoder_2": TABLE + WIDE,
                "vae_encoder": 2 * 16384**2 + 5 * 16384 * 512,  # attention over 128 x 128 positions is larger
                "vae_decoder": 4 * 256 * 1024 * 1024,
                "modulation": 2 * 28 * MODULATION,
                "transformer": 8192 * 64 + INPUTS + SINGLE * 8704,
            },
        ),
        (
            ONE,
            CPU,
            {
                "text_encoder": CLIP + 2 * 12 * 77 * 77,
                "text_encoder_2": TABLE + 512 * (2 * 4096 + 4 * 4096) + 2 * TABLE,
                "vae_encoder": 5.25 * 128 * 1024 * 1024,
                "vae_decoder": 5.25 * 256 * 1024 * 1024,
                "modulation": 2 * 28 * MODULATION,
                "transformer": 8192 * 64 + INPUTS + 3 * SINGLE * 8704 + 24 * 8704 * 8704,
            },
        ),
        (
            SMALL,
            CUDA,
            {
                "text_encoder": 2 * CLIP,
                "text_encoder_2": 2 * (TABLE + WIDE),
                "vae_encoder": 4 * 128 * 512 * 256,
                "vae_decoder": 4 * 256 * 512 * 256,
                "modulation": 2 * 4 * 2 * MODULATION,
                "transformer": 2 * (2048 * 64 + INPUTS + SINGLE * 2560),
            },
        ),
    ],
    ids=["one edit", "one on a CPU", "two small ones"],
)
def test_what_is_alive_in_the_real_networks_by_hand(
    work: Workload, executor: Executor, numbers: dict[str, float]
) -> None:
    found = demands(FLUX, BF16, work, executor)
    lost = 1.1 if executor is CUDA else 1.0  # a tenth to the allocator
    assert {name: demand.activations for name, demand in found.items()} == {
        name: pytest.approx(2 * lost * each, abs=1) for name, each in numbers.items()
    }
    for demand in found.values():
        assert demand.workspace == executor.workspace
        assert demand.bytes == demand.held + demand.activations + demand.workspace + demand.overhead


def test_weights_in_memory_and_on_disk() -> None:
    stored = [("int8", 100), ("int4", 100), ("nf4", 10)]
    assert resident_bytes(stored, find_target("cpu")) == 235  # packed INT8 is a quarter larger
    assert resident_bytes(stored, find_target("sm_89")) == 210
    assert executor_of(find_target("cpu")) is CPU
    assert executor_of(find_target("sm_89")) is CUDA


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (ONE, "an edit at 1024x1024 with one reference, 28 steps"),
        (SMALL, "2 edits at once at 512x256 with 3 references, 4 steps"),
        (Workload(64, 32, references=0), "an edit at 64x32 with no reference, 28 steps"),
    ],
)
def test_workloads_in_words(work: Workload, text: str) -> None:
    assert str(work) == text


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
    fused, unfused = (transformer_numbers(FLUX, tokens, executor) for executor in (CUDA, CPU))
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


def test_the_small_networks_hold_a_little_less_than_is_planned(tiny_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from kontext.model.diffusers_config import read_config

    config = read_config(tiny_bundle.parent / "checkpoint")
    for name, sizes, planned in (
        ("text_encoder", {"batch": 1}, clip_numbers(config, CUDA)),
        ("text_encoder_2", {"batch": 1}, t5_numbers(config, CUDA)),
        ("modulation", {"rows": 28}, modulation_numbers(config, Workload(128, 128))),
    ):
        model = onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False)
        alive = most_alive(onnx, model, sizes, 0)
        assert alive <= planned < 1.3 * alive, name


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
