"""The plan of a weight file against the safetensors library."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.weights import write  # noqa: E402
from kontext.export.weights.convert import transposed  # noqa: E402
from kontext.export.weights.plan import WeightPlan, check_reached, plan_weights  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS, linear_weights  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402


def planned(
    checkpoint: Path, name: str, compute: str, quantization: str | None
) -> tuple[WeightPlan, Checkpoint]:
    opened = Checkpoint.open(checkpoint)
    recipe = choose_recipe(tuple(NETWORKS), 1, compute, quantization)
    constants = {"table": torch.arange(6).reshape(2, 3)}
    linears = linear_weights(name, opened.config)
    return plan_weights(opened.networks[name], recipe, linears, constants), opened


def test_the_header_is_aligned_and_has_nothing_but_tensors(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan, checkpoint = planned(tiny_checkpoint, "modulation", "fp32", "fp8")
    stream = write.weight_stream(plan, checkpoint.networks["modulation"])
    write.write_stream(stream, tmp_path / "w", 0, lambda _: None, lambda _: None)
    assert len(plan.header) % 8 == 0
    with safe_open(tmp_path / "w", "pt") as file:
        assert file.metadata() is None
        assert list(file.offset_keys()) == list(plan.tensors())


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_sizes_are_those_of_the_file(tiny_checkpoint: Path, compute: str) -> None:
    """A disk's free space is compared with them before anything is written."""
    plan, checkpoint = planned(tiny_checkpoint, "transformer", compute, "int4")
    tensors = list(plan.tensors().values())
    assert tensors[0].start == len(plan.header)
    assert all(before.stop == after.start for before, after in itertools.pairwise(tensors))
    assert len(plan.header) + sum(item.size for item in plan.items) == plan.size == tensors[-1].stop
    assert [item.weight for item in plan.items] == ["table", *checkpoint.networks["transformer"].shapes]
    recipe = choose_recipe(tuple(NETWORKS), 1, compute, None)
    network = checkpoint.networks["transformer"]
    nothing = plan_weights(network, recipe, set(), {}, linked=set(network.shapes))
    assert nothing.size == len(nothing.header)


def test_linked_weights_have_no_place(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    network = checkpoint.networks["modulation"]
    recipe = choose_recipe(tuple(NETWORKS), 1, "fp32", None)
    kept = list(network.shapes)[1::2]
    plan = plan_weights(network, recipe, set(), {}, linked=list(network.shapes)[0::2])
    assert list(plan.tensors()) == kept
    assert all(plan.tensors()[name].shape == network.shapes[name] for name in kept)


@pytest.mark.parametrize("shape", [(1, 5), (127, 3), (128, 128), (129, 2), (300, 65)])
def test_transposed_is_the_contiguous_transpose(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float16)
    result = transposed(matrix)
    assert result.is_contiguous()
    assert torch.equal(result, matrix.t())


def test_linears_that_calibration_never_reached_are_named(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    network = checkpoint.networks["transformer"]
    linears = linear_weights("transformer", checkpoint.config)
    recipe = choose_recipe(tuple(NETWORKS), 1, "fp32", "nvfp4", calibrated=True)
    found = {}
    for name in linears:
        width = network.shapes[name][1]
        found[name] = InputStatistics.empty(width)
        found[name].add(torch.ones(2, width), 0)
    check_reached([plan_weights(network, recipe, linears, {}, statistics=found)])
    missing = ["double_blocks.0.img_attn.qkv.weight", "double_blocks.0.img_mlp.0.weight"]
    found[missing[0]] = InputStatistics.empty(network.shapes[missing[0]][1])
    del found[missing[1]]
    with pytest.raises(
        KontextError, match=f"never reached transformer {missing[0]}, transformer {missing[1]},"
    ):
        check_reached([plan_weights(network, recipe, linears, {}, statistics=found)])
    unrounded = choose_recipe(tuple(NETWORKS), 1, "fp32", "nvfp4", calibrated=True, weight_only=True)
    check_reached([plan_weights(network, unrounded, linears, {}, statistics=found)])
