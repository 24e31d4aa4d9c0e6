"""What a step takes, from shapes, and what this processor gives at most: the rate of matrix products, and bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..model.config import TransformerConfig
    from ..runtime.bundle import Bundle

MATRIX = 3072
"""Rows of the square matrices whose product gives the processor's rate: FLUX's hidden size."""

COPIED_BYTES = 1 << 28
"""Far more than a processor's caches hold."""


def step_work(config: TransformerConfig, blocks: int, queries: int, keys: int) -> tuple[float, float]:
    """(FLOPs of the linears, FLOPs of attention) in `blocks` blocks, for `queries` tokens that attend to `keys` tokens.

    Double and single blocks cost the same: qkv, proj and the MLP, which single blocks fuse into two linears.
    """
    hidden = config.hidden_size
    linears = 2 * queries * (4 * hidden**2 + 2 * hidden * config.mlp_size)
    return blocks * linears, blocks * 4 * queries * keys * hidden


def step_flops(bundle: Bundle, width: int, height: int) -> float:
    """Floating-point operations of one step of one edit with one reference: two for each weight of a block and token,
    and those of attention's two products."""
    from ..runtime.backends.torch.backend import read_config

    config = read_config(bundle).transformer
    side = 2 * bundle.autoencoder.downscale
    tokens = 2 * (width // side) * (height // side) + bundle.tokenizers["t5"].max_length
    depth = config.num_double_blocks + config.num_single_blocks
    return float(sum(step_work(config, depth, tokens, tokens)))


def matrix_rates(sizes: Sequence[int] = (MATRIX,), repeats: int = 5) -> dict[str, float]:
    """Format → operations a second of the fastest product of two square matrices of one of `sizes`, in PyTorch, or in
    NumPy where its library is faster: MKL, PyTorch's, holds back on AMD's processors."""
    import torch

    rates = dict.fromkeys(("fp32", "bf16"), 0.0)
    for size in sizes:
        plain = np.ones((size, size), np.float32)
        sides = [
            ("fp32", plain),
            ("fp32", torch.from_numpy(plain)),
            ("bf16", torch.from_numpy(plain).bfloat16()),
        ]
        for name, matrix in sides:
            seconds = fastest(lambda a=matrix: a @ a, repeats)  # type: ignore[misc]
            rates[name] = max(rates[name], 2 * size**3 / seconds)
    return rates


def copy_bandwidth(repeats: int = 5) -> float:
    """Bytes a second of the fastest copy of a large array by one thread, read and written ones both counted."""
    source = np.ones(COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    return 2 * COPIED_BYTES / fastest(lambda: np.copyto(target, source), repeats)


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
