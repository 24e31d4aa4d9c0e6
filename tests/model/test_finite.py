"""NaN and infinity in a tensor, and sums that overflow without either."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from kontext.model.finite import is_finite  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_among_many(dtype: torch.dtype, value: float) -> None:
    tensor = torch.randn(64, 65).to(dtype)
    assert is_finite(tensor)
    tensor[17, 3] = value
    assert not is_finite(tensor)
    assert is_finite(tensor[18:])


def test_opposite_infinities() -> None:
    assert not is_finite(torch.tensor([math.inf, -math.inf, 0.0]))


def test_a_sum_that_overflows() -> None:
    assert is_finite(torch.full((4,), 3e38))
    assert is_finite(torch.full((4,), 6e4, dtype=torch.float16))


def test_no_values() -> None:
    assert is_finite(torch.empty(0, 3))
