"""The noise against PyTorch's own, and what a seed may be."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kontext.errors import KontextError
from kontext.runtime.noise import LARGEST_SEED, randn

SHAPES = [
    (1,),
    (2,),
    (3,),
    (15,),
    (16,),
    (17,),
    (31,),
    (33,),
    (3, 5, 7, 11),
    (1, 16, 2, 2),
    (1, 16, 16, 16),
    (2, 16, 18, 14),
    (1, 16, 21, 49),
    (1, 16, 128, 128),
]
SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 20261123 << 20, 2**63 + 7, LARGEST_SEED]


def check(seed: int, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    actual = randn(seed, shape)
    assert actual.dtype == np.float32
    assert actual.shape == shape
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert np.array_equal(actual, expected)
    else:  # PyTorch calls the C library there, whose last bits are others
        assert np.abs(actual - expected).max() < 3e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_as_in_pytorch(shape: tuple[int, ...]) -> None:
    check(7, shape)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_is_as_in_pytorch(seed: int) -> None:
    check(seed, (1, 16, 16, 20))


def test_two_million_values_reach_both_ends_of_the_uniform_range() -> None:
    check(11, (2_000_000,))


def test_golden_noise_without_pytorch() -> None:
    noise = randn(0, (1, 16, 16, 16))
    assert hashlib.sha256(noise.tobytes()).hexdigest() == (
        "a25207107225c7f610397660248fee8c2aac455439e6b113fdf5cfea11eff662"
    )


@pytest.mark.parametrize("seed", [-1, -(2**63), LARGEST_SEED + 1])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(KontextError, match="whole number from 0"):
        randn(seed, (16,))
