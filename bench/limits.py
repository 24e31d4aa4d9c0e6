"""What a step takes, from shapes, and what this processor gives at most: the rate of matrix products, and bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
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


def matrix_rates(repeats: int = 5) -> dict[str, float]:
    """Format → operations a second of the fastest product of two square matrices in PyTorch."""
    import torch

    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.ones(MATRIX, MATRIX, dtype=dtype) for _ in range(2))
        rates[name] = 2 * MATRIX**3 / fastest(lambda a=a, b=b: a @ b, repeats)  # type: ignore[misc]
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
