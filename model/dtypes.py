"""Number formats by their three names: safetensors' ("BF16"), PyTorch's (`torch.bfloat16`), this toolkit's ("bf16")."""

from __future__ import annotations

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' name → PyTorch's: the formats that are read and written."""

STORED_DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Format that a network computes in → safetensors' name."""

COMPUTE_DTYPES = {name: TORCH_DTYPES[stored] for name, stored in STORED_DTYPES.items()}
"""Format that a network computes in → PyTorch's name."""
