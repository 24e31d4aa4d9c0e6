"""Quantized folders by their config.json: bitsandbytes' are read, all others refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.model.diffusers_config import read_config

from .damaged_folders import edit_json


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_bitsandbytes_and_plain_fp8_are_read(folder: Path, component: str) -> None:
    expected = read_config(folder)
    for config in (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"_load_in_8bit": True, "load_in_8bit": True, "llm_int8_threshold": 6.0},
        {"quant_method": "fp8", "weight_block_size": None},
        None,
    ):
        edit_json(folder / component / "config.json", quantization_config=config)
        assert read_config(folder) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "torchao", "quant_type": {}},
            "the weights are quantized by torchao, which is not read: export the original bf16 weights with --int8",
        ),
        ({"quant_method": "quanto", "weights_dtype": "int8"}, "by quanto, "),
        (
            {"quant_method": "QuantizationMethod.GGUF"},
            "by gguf, which is not read: .*, or name the .gguf file itself",
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "by modelopt, .* with --fp8 or --nvfp4"),
        ({"quant_algo": "NVFP4"}, "by nvfp4, "),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "by fp8, "),
        ({}, "by an unknown method, "),
        ("nf4", "quantization_config is 'nf4', expected an object"),
    ],
)
def test_others_are_refused_by_name(folder: Path, config: object, message: str) -> None:
    edit_json(folder / "transformer/config.json", quantization_config=config)
    with pytest.raises(
        KontextError, match=rf"^{re.escape(str(folder))}/transformer/config.json: .*{message}"
    ):
        read_config(folder)
