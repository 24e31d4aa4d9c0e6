"""What the names of tensors in LoRA files say."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from kontext.model.lora.names import is_lora, other_kind, split_name


@pytest.mark.parametrize(
    ("tensor", "module", "role"),
    [
        ("a.b.lora_A.weight", "a.b", "down"),
        ("a.b.lora_A.default.weight", "a.b", "down"),
        ("a.b.lora_down.weight", "a.b", "down"),
        ("a.b.lora.down.weight", "a.b", "down"),
        ("a.b.lora_linear_layer.up.weight", "a.b", "up"),
        ("a.b_lora.up.weight", "a.b_lora", "up"),
        ("a.b.lora_B.bias", "a.b", "up_bias"),
        ("a.b.lora_B", "a.b", "up"),
        ("a.b.alpha", "a.b", "alpha"),
        ("a.b.diff", "a.b", "diff"),
        ("a.b.diff_b", "a.b", "diff_b"),
        ("a.b.scale", "a.b", "weight"),
        ("a.b.weight", "a.b", "weight"),
        ("a.b.w_norm", "a.b", "diff"),
        ("a.b.b_norm", "a.b", "diff_b"),
        ("a.b.lora_magnitude_vector", "a.b", "magnitude"),
        ("a.b.lora_magnitude_vector.weight", "a.b", "magnitude"),
        ("a.b.lora_magnitude_vector.default.weight", "a.b", "magnitude"),
        ("a.b.dora_scale", "a.b", "dora_scale"),
        ("a.b.lokr_w1", "a.b", "lokr_w1"),
        ("a.b.lokr_w2_a", "a.b", "lokr_w2_a"),
        ("a.b.hada_w1_b.default", "a.b", "hada_w1_b"),
    ],
)
def test_a_tensors_module_and_role(tensor: str, module: str, role: str) -> None:
    assert split_name(tensor) == (module, role)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("a.b.oft_blocks", "OFT"),
        ("a.b.oft_R.weight", "OFT"),
        ("a.b.boft_R", "BOFT"),
        ("a.b.a1.weight", "GLoRA"),
        ("a.b.on_input", "IA3"),
        ("a.b.ia3_l", "IA3"),
        ("a.b.lokr_t2", "LoCon"),
        ("a.b.lora_mid.weight", "LoCon"),
        ("a.b.lora_embedding_A", "embeddings"),
        ("a.b.lambda_layer", "T-LoRA"),
        ("a.b.reshape_weight", "widens"),
        ("a.loft_b.weight", None),
        ("double_blocks.0.img_attn.qkv.weight", None),
        ("double_blocks.0.img_attn.qkv.scale_weight", None),
    ],
)
def test_kinds_that_cannot_be_fused(tensor: str, kind: str | None) -> None:
    found = other_kind(tensor)
    assert (kind in found) if kind and found else kind == found
    assert is_lora([tensor]) == (kind is not None)


def test_weights_are_no_lora() -> None:
    assert not is_lora(["a.b.weight", "a.b.bias", "a.b.scale", "a.alpha", "a.scale_weight"])
    assert is_lora(["a.b.weight", "a.b.lora_A.weight"])
