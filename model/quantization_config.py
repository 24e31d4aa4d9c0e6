"""Whether weights with a `quantization_config`, diffusers' and transformers' note in a component's config.json, can be
read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import KontextError
from .json_fields import Fields

READ = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
"""Methods whose tensors say everything that is needed (`stored_formats.bitsandbytes`, `stored_formats.int8`)."""

INSTEAD = {
    "torchao": "--int8, --int4 or --fp8",
    "quanto": "--int8 or --int4",
    "gguf": "or name the .gguf file itself",
    "modelopt": "--fp8 or --nvfp4",
    "nunchaku": "--int4, which has a low-rank branch as well",
    "svdquant": "--int4, which has a low-rank branch as well",
    "gptq": "--int4 --calibrate",
    "awq": "--int4 --calibrate",
    "compressed-tensors": "--fp8 or --int8",
    "fp8": "--fp8",
}
"""Method → our flags for something like it."""


def check_quantization(fields: Fields) -> None:
    """Raises KontextError unless the weights beside a config.json are not quantized, or in a way that is read."""
    value = fields.get("quantization_config")
    if value is None:
        return
    if not isinstance(value, dict):
        raise fields.error("quantization_config", "an object")
    method = quantization_method(value)
    if method in READ or (method == "fp8" and value.get("weight_block_size") is None):
        return
    instead = INSTEAD.get(method, "--int8, --int4 or --fp8")
    raise KontextError(
        f"{fields.path}: the weights are quantized by {method}, which is not read: export the original bf16 weights"
        f"{' with ' if instead.startswith('--') else ', '}{instead}"
    )


def quantization_method(value: Mapping[str, Any]) -> str:
    """The method's name in lower case; old bitsandbytes configurations do not have it."""
    method = value.get("quant_method")
    if method is None and (value.get("load_in_4bit") or value.get("load_in_8bit")):
        return "bitsandbytes"
    return str(method or value.get("quant_algo") or "an unknown method").rpartition(".")[2].lower()
