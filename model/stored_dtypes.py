"""Number formats by their three names: safetensors' ("BF16"), PyTorch's ("bfloat16"), this toolkit's ("bf16").

`dtypes` has PyTorch's own objects for them.
"""

from __future__ import annotations

TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' name → PyTorch's: the formats that are read and written."""

STORED_DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Format that a network computes in → safetensors' name."""
