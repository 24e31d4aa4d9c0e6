"""What an export says of weights and inputs that their format cannot hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kontext.export.weights.convert import convert  # noqa: E402
from kontext.export.weights.plan import plan_weights  # noqa: E402
from kontext.model.checkpoint import NetworkWeights  # noqa: E402
from kontext.quant.recipe import Recipe, Rule  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402

NAME = "single_blocks.0.linear2.weight"


def test_blocks_that_are_too_small_are_counted_in_a_warning_with_the_weights_name() -> None:
    recipe = Recipe("mine", {"transformer": "bf16"}, (Rule("*", "*", "nvfp4", 0, "nvfp4"),))
    statistics = InputStatistics.empty(32)
    statistics.add(torch.tensor([[1e-6] * 16 + [1.0] * 16] * 8), 0)
    plan = plan_weights(
        NetworkWeights("transformer", {NAME: (16, 32)}, {}, {}),
        recipe,
        {NAME},
        {},
        statistics={NAME: statistics},
    )
    weight = torch.ones(16, 32)
    weight[:3, :16] = 1e-7
    network: Any = SimpleNamespace(read=lambda _: weight)
    with pytest.warns(UserWarning, match="too small") as found:
        convert(plan, plan.items[0], network)
    messages = [str(each.message) for each in found]
    assert [message.split(" are too small")[0] for message in messages] == [
        f"transformer: {NAME}: 3 of 32 blocks of weights",
        f"transformer: {NAME}: 1 of 2 blocks of its inputs",
    ]
