"""PyTorch's objects for the number formats of `stored_dtypes`."""

from __future__ import annotations

import torch

from .stored_dtypes import STORED_DTYPES, TORCH_NAMES

TORCH_DTYPES: dict[str, torch.dtype] = {stored: getattr(torch, name) for stored, name in TORCH_NAMES.items()}
"""safetensors' name → PyTorch's: the formats that are read and written."""

COMPUTE_DTYPES = {name: TORCH_DTYPES[stored] for name, stored in STORED_DTYPES.items()}
"""Format that a network computes in → PyTorch's name."""
