"""Every trainer's names of the model's modules. Whole files of every trainer: test_lora.py."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from kontext.model.config import TransformerConfig
from kontext.model.lora.targets import TargetRows, module_tables, resolve

CONFIG = TransformerConfig(
    in_channels=64,
    hidden_size=64,
    num_heads=2,
    num_double_blocks=1,
    num_single_blocks=1,
    axes_dim=(8, 12, 12),
)


def test_every_trainers_name_of_a_fused_linear() -> None:
    from kontext.model.config import KontextConfig
    from kontext.model.networks import weight_shapes

    config = KontextConfig(transformer=CONFIG)
    networks = ("transformer", "modulation", "text_encoder", "text_encoder_2")
    tables = module_tables({name: weight_shapes(name, config) for name in networks}, CONFIG)
    weight = "double_blocks.0.img_attn.qkv.weight"
    whole = (TargetRows("transformer", weight, slice(0, 192)),)
    for module in (
        "double_blocks.0.img_attn.qkv",
        "diffusion_model.double_blocks.0.img_attn.qkv",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "double_blocks.0.processor.qkv_lora1",
    ):
        found = resolve(module, tables)
        assert found is not None
        assert found[0] == "transformer"
        assert found[2] == whole
    for index, part in enumerate("qkv"):
        found = resolve(f"transformer.transformer_blocks.0.attn.to_{part}", tables)
        assert found is not None
        assert found[2] == (TargetRows("transformer", weight, slice(64 * index, 64 * (index + 1))),)
    assert resolve("transformer.transformer_blocks.1.attn.to_q", tables) is None
