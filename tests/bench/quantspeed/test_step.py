"""The inputs of a timed step."""

from __future__ import annotations

import numpy as np
import pytest

from kontext.bench.quantspeed import step


@pytest.mark.parametrize(("tokens", "size"), [(1024, (32, 32)), (512, (16, 32)), (16, (4, 4))])
def test_tokens_fill_a_grid(tokens: int, size: tuple[int, int]) -> None:
    assert step.grid(tokens) == size


def test_inputs_are_the_same_every_time() -> None:
    first, second = (step.step_inputs(16, 64, (8, 32), 24) for _ in range(2))
    assert {name: each.shape for name, each in first.items()} == {
        "target": (1, 16, 64),
        "reference": (1, 16, 64),
        "text": (1, 8, 32),
        "pooled": (1, 24),
    }
    for name, each in first.items():
        np.testing.assert_array_equal(each, second[name])
