"""Names in LoRA files: modules and roles of tensors, and sampling steps. Whole files of every trainer: test_lora.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.model.config import TransformerConfig
from kontext.model.lora_names import TargetRows, guess_steps, module_tables, resolve, split_name

CONFIG = TransformerConfig(
    in_channels=64,
    hidden_size=64,
    num_heads=2,
    num_double_blocks=1,
    num_single_blocks=1,
    axes_dim=(8, 12, 12),
)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", 8),
        ("flux_4-step.safetensors", 4),
        ("Hyper_16_Step.safetensors", 16),
        ("FLUX.1-Turbo-Alpha.safetensors", 8),
        ("models--alimama-creative--FLUX.1-Turbo-Alpha/snapshots/1/diffusion_pytorch_model.safetensors", 8),
        ("style-2000steps.safetensors", None),
        ("style_step_2000.safetensors", None),
        ("style-28-steps.safetensors", None),
        ("8-steps/style.safetensors", None),
        ("8-stepsister.safetensors", None),
    ],
)
def test_steps(name: str, steps: int | None) -> None:
    assert guess_steps(Path("/folder") / name, {}) == steps


def test_metadata_names_the_steps_of_a_file_whose_name_does_not() -> None:
    assert guess_steps(Path("a.safetensors"), {"modelspec.title": "Fast 4-step", "ss_steps": "8"}) == 4
    assert guess_steps(Path("8-steps.safetensors"), {"ss_output_name": "Fast 4-step"}) == 8


@pytest.mark.parametrize(
    ("tensor", "module", "role"),
    [
        ("a.b.lora_A.weight", "a.b", "down"),
        ("a.b.lora_A.default.weight", "a.b", "down"),
        ("a.b.lora_down.weight", "a.b", "down"),
        ("a.b.lora.down.weight", "a.b", "down"),
        ("a.b.lora_linear_layer.up.weight", "a.b", "up"),
        ("a.b_lora.up.weight", "a.b_lora", "up"),
        ("a.b.lora_B.bias", "a.b", "bias"),
        ("a.b.alpha", "a.b", "alpha"),
        ("a.b.diff", "a.b", "diff"),
        ("a.b.diff_b", "a.b", "diff_b"),
        ("a.b.scale", "a.b.scale", "norm"),
    ],
)
def test_a_tensors_module_and_role(tensor: str, module: str, role: str) -> None:
    assert split_name(tensor) == (module, role)


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
