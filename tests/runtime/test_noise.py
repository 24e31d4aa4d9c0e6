from __future__ import annotations

import numpy as np
import pytest
from kontext.errors import KontextError
from kontext.runtime.noise import LARGEST_SEED, randn

torch = pytest.importorskip("torch")

SHAPES = [(1,), (2,), (3,), (15,), (16,), (17,), (31,), (33,), (5, 7, 3), (1, 16, 16, 16), (1, 16, 21, 49)]
SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63 + 7, LARGEST_SEED]


def avx2() -> bool:
    """Whether this PyTorch draws noise with the vector code that `noise` follows."""
    return "AVX" in torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_same_noise_as_pytorch(seed: int, shape: tuple[int, ...]) -> None:
    expected = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    actual = randn(seed, shape)
    assert actual.dtype == np.float32
    assert np.array_equal(actual, expected) or (not avx2() and np.abs(actual - expected).max() < 3e-6)


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1])
def test_refuses_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(KontextError, match="whole number from 0"):
        randn(seed, (16,))
