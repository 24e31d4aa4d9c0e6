"""What each number of a manifest may be. The C++ runtime has the same table (runtime/cpp/src/manifest_ranges.hpp), and
a test compares the two.

A larger number is no model's: it would end in an overflow, or in memory that no machine has.
"""

from __future__ import annotations

RANGES: dict[str, tuple[float, float]] = {
    "format_version": (1, 1000),
    "size": (0, 1 << 50),
    # model.transformer and model.autoencoder
    "in_channels": (4, 4096),
    "head_dim": (2, 4096),
    "axes_dim": (2, 4096),
    "theta": (1, 1e9),
    "text_dim": (1, 65536),
    "pooled_dim": (1, 65536),
    "latent_channels": (1, 1024),
    "downscale": (1, 256),
    # sampler
    "steps": (1, 1000),
    "guidance": (-1000, 1000),
    "base_shift": (-20, 20),
    "max_shift": (-20, 20),
    "base_tokens": (1, 1 << 24),
    "max_tokens": (1, 1 << 24),
    "size_multiple": (2, 4096),
    "preferred_sizes": (1, 4096),
    "shift": (0, 1000),
    "terminal": (0, 1),
    "preview": (-1000, 1000),
    # graphs and tokenizers
    "opset": (1, 1000),
    "max_rank": (1, 1024),
    "max_length": (2, 4096),
    "pad_id": (0, (1 << 31) - 1),
    "eos_id": (0, (1 << 31) - 1),
}
"""Field → the smallest and the largest value, both allowed. `size` is in bytes, `preferred_sizes` are sides in
pixels."""

MOST_SIZES = 1000
"""Preferred sizes of a sampler. FLUX.1 Kontext's has 17."""

MOST_FILES = 10_000
"""Files of a bundle. One with kernels for every architecture has 300."""

MOST_CHARACTERS = 4096
"""Of a string, and of a file's name."""
