"""The noise of `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` in numpy, bit for bit.

PyTorch draws uniforms from MT19937 and turns 16 at a time into normals (Box-Muller), with avx_mathfun's polynomials
for log, sin and cos; the same operations in the same order give the same bits. On machines without AVX2 PyTorch's own
noise differs by less than 3e-6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import KontextError

Floats = npt.NDArray[np.float32]

LARGEST_SEED = 2**64 - 1

# Cephes' single-precision polynomials, as avx_mathfun (Giovanni Garberoglio, after Julien Pommier) has them.
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LOG_2 = (-2.12194440e-4, 0.693359375)
QUARTER_TURN = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)


def randn(seed: int, shape: Sequence[int]) -> Floats:
    """Normal float32 noise of `shape`.

    Raises KontextError unless 0 <= seed < 2^64. As in PyTorch, only the low 32 bits of the seed matter.
    """
    check_seed(seed)
    size = math.prod(shape)
    source = np.random.RandomState(seed & 0xFFFFFFFF)  # seeds MT19937 with init_genrand, as PyTorch does
    if size < 16:
        return small_noise(source, size).reshape(shape)
    noise = uniforms(source, size)
    whole = size - size % 16
    noise[:whole] = box_muller(noise[:whole])
    if whole < size:  # PyTorch draws the last 16 values again
        noise[-16:] = box_muller(uniforms(source, 16))
    return noise.reshape(shape)


def check_seed(seed: int) -> None:
    if not 0 <= seed <= LARGEST_SEED:
        raise KontextError(f"a seed is a whole number from 0 to 2^64 - 1, not {seed}")


def uniforms(source: np.random.RandomState, size: int) -> Floats:
    """`size` multiples of 2^-24, uniform in [0, 1)."""
    words = source.randint(0, 2**32, size=size, dtype=np.uint32)
    return (words & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)


def box_muller(uniform: Floats) -> Floats:
    """Normals of uniforms: each block of 16 is 8 u, then 8 v, and becomes sqrt(-2 log(1 - u)) · (cos 2πv, sin 2πv)."""
    pairs = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * log(np.float32(1) - pairs[:, 0]))
    sin, cos = sin_cos(np.float32(2 * math.pi) * pairs[:, 1])
    return np.stack([radius * cos, radius * sin], axis=1).reshape(-1)


def small_noise(source: np.random.RandomState, size: int) -> Floats:
    """Fewer than 16 normals: PyTorch computes these in double precision, each pair from two draws of 53 bits."""
    normals: list[float] = []
    while len(normals) < size:
        high, low = source.randint(0, 2**32, size=(2, 2), dtype=np.uint32).T.tolist()
        first, second = (((h << 32 | w) & (2**53 - 1)) * 2.0**-53 for h, w in zip(high, low, strict=True))
        radius, angle = math.sqrt(-2 * math.log1p(-second)), 2 * math.pi * first
        normals += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(normals[:size], np.float32)


def fused(a: Floats, b: Floats | float, c: Floats | float) -> Floats:
    """a · b + c, rounded to float32 once (the product of two float32 is exact in float64)."""
    a64, b64, c64 = (np.asarray(each, np.float32).astype(np.float64) for each in (a, b, c))
    return (a64 * b64 + c64).astype(np.float32)


def polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fused(value, x, coefficient)
    return value


def log(x: Floats) -> Floats:
    mantissa, exponent = np.frexp(x)
    small = mantissa < np.float32(math.sqrt(0.5))
    e = exponent.astype(np.float32) - small.astype(np.float32)
    x = (mantissa - np.float32(1)) + np.where(small, mantissa, np.float32(0))
    square = x * x
    y = fused(polynomial(LOG, x) * x, square, e * np.float32(LOG_2[0]))
    y = fused(square, -0.5, y)
    return fused(e, LOG_2[1], x + y)


def sin_cos(angle: Floats) -> tuple[Floats, Floats]:
    """sin and cos of angles in [0, 2π)."""
    octant = (angle * np.float32(4 / math.pi)).astype(np.int32) + 1 & ~1
    x = angle
    for part in QUARTER_TURN:  # π/4 in three parts, so that the remainder keeps its bits
        x = fused(octant.astype(np.float32), part, x)
    square = x * x
    cos = fused(polynomial(COS, square) * square, square, square * np.float32(-0.5)) + np.float32(1)
    sin = fused(polynomial(SIN, square) * square, x, x)
    swapped = octant & 2 != 0
    return (
        np.where(octant & 4 != 0, np.float32(-1), np.float32(1)) * np.where(swapped, cos, sin),
        np.where((octant - 2) & 4 == 0, np.float32(-1), np.float32(1)) * np.where(swapped, sin, cos),
    )
