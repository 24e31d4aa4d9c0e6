"""NVIDIA Model Optimizer's configurations on normal numbers, and which of them need a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")
pytest.importorskip("modelopt")

from kontext.bench.fidelity.network_peers import model_optimizer
from kontext.bench.fidelity.network_peers.torch_networks import TorchMethod
from kontext.bench.fidelity.quiet import quiet

Measure = Callable[[TorchMethod], tuple[float, float]]
WEIGHTS = 192 * 256
CHANNELS, INPUT = 32 / 192, 32 / WEIGHTS
FACTORS = 32 / 256
"""A factor for each of 192 input channels."""


@pytest.mark.parametrize(
    ("method", "low", "high", "bits"),
    [
        (model_optimizer.FP8, 27, 30, 8 + 2 * INPUT),
        (model_optimizer.FP8_TOKEN, 27, 30, 8 + CHANNELS),
        (model_optimizer.INT8, 34, 42, 8 + CHANNELS + INPUT),
        (model_optimizer.SMOOTHQUANT, 34, 43, 8 + CHANNELS + FACTORS + INPUT),
        (model_optimizer.AWQ, 17, 22, 4.5 + FACTORS),
        (model_optimizer.AWQ_FP8, 17, 22, 4.5 + FACTORS + 2 * INPUT),
        (model_optimizer.SVDQUANT, 17, 24, 4.5 + FACTORS + 32 * 32 * (192 + 256) / WEIGHTS),
    ],
)
def test_error_and_bits(
    method: TorchMethod, low: float, high: float, bits: float, one_linear: Measure
) -> None:
    ratio, found = one_linear(method)
    assert low < ratio < high
    assert found == pytest.approx(bits)


@pytest.mark.parametrize("config", ["NVFP4_DEFAULT_CFG", "NVFP4_SVDQUANT_DEFAULT_CFG", "NVFP4_AWQ_LITE_CFG"])
def test_what_needs_a_gpu(config: str) -> None:
    """Inputs in E2M1 with a scale for each block, found at run time: docs/fidelity.md names them as not measured."""
    with quiet(), pytest.raises(AssertionError, match="amax must be a CUDA tensor"):
        model_optimizer.method(config).try_alone()
