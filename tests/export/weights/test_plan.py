"""The plan of a weight file against the safetensors library."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402

from kontext.export.graph.interface import linear_weights  # noqa: E402
from kontext.export.weights import write  # noqa: E402
from kontext.export.weights.plan import WeightPlan, plan_weights  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402


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
    write.write_weights(
        plan, checkpoint.networks["modulation"], tmp_path / "w", 0, lambda _: None, lambda _: None
    )
    assert len(plan.header) % 8 == 0
    with safe_open(tmp_path / "w", "pt") as file:
        assert file.metadata() is None
        assert list(file.offset_keys()) == list(plan.tensors())
