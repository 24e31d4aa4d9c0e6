"""The scale over all blocks of inputs: calibration's largest block has a scale well within E4M3."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.block_input_scale import HEADROOM, block_input_scale, input_reach  # noqa: E402
from kontext.quant.quantize import quantize_weight  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402


def statistics() -> InputStatistics:
    found = InputStatistics.empty(32)
    found.add(torch.tensor([[-1.0] * 16 + [3.0] * 16, [2.0] * 16 + [-8.0] * 16]), 0)
    return found


def test_twice_the_largest_input_is_within_range() -> None:
    scale = block_input_scale(input_reach(statistics(), None, None))
    assert scale == HEADROOM * 8 / (448 * 6)
    assert (8 / (6 * scale), HEADROOM * 8 / (6 * scale)) == (224.0, 448.0)


def test_centre_and_factors() -> None:
    centre, factors = torch.tensor([1.0] * 16 + [-2.0] * 16), torch.tensor([1.0] * 16 + [0.5] * 16)
    assert input_reach(statistics(), centre, None).tolist() == [2.0] * 16 + [6.0] * 16
    assert input_reach(statistics(), centre, factors).tolist() == [2.0] * 16 + [3.0] * 16


def test_inputs_of_zeros_have_a_scale_whose_steps_are_normal_numbers() -> None:
    scale = block_input_scale(torch.zeros(32))
    assert scale > 0
    assert scale * 2.0**-9 > torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_stored_in_fp32(dtype: torch.dtype) -> None:
    """For inputs up to 1 it would be subnormal in fp16."""
    layer = Layer("nvfp4", 0, "nvfp4")
    *_, scale = quantize_weight(torch.ones(32, 16), layer, dtype, statistics())
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    assert float(scale) == pytest.approx(HEADROOM * 8 / (448 * 6), rel=1e-7)
