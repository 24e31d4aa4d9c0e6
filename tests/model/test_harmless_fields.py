"""Known fields: not a word about published and freshly written configurations, a warning about others."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.model import harmless_fields
from kontext.model.diffusers_config import (
    read_autoencoder,
    read_clip,
    read_config,
    read_sampler,
    read_t5,
    read_transformer,
)

from .damaged_folders import edit_json

BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}

PUBLISHED: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "FluxKontextPipeline",
        "_diffusers_version": "0.34.0.dev0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "transformer/config.json": {
        "_class_name": "FluxTransformer2DModel",
        "_diffusers_version": "0.34.0.dev0",
        "_name_or_path": "../checkpoints/flux-dev/transformer",
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "out_channels": None,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.30.0.dev0",
        "_name_or_path": "../checkpoints/flux-dev",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 16,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
        **BLOCKS,
    },
    "text_encoder/config.json": {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.3",
        "vocab_size": 49408,
    },
    "text_encoder_2/config.json": {
        "_name_or_path": "google/t5-v1_1-xxl",
        "architectures": ["T5EncoderModel"],
        "classifier_dropout": 0.0,
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_decoder_layers": 24,
        "num_heads": 64,
        "num_layers": 24,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.3",
        "use_cache": True,
        "vocab_size": 32128,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.34.0.dev0",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "invert_sigmas": False,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": True,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    },
}
"""FLUX.1 Kontext [dev]'s configurations, with FLUX.1 [dev]'s paths: the fields that diffusers 0.30 to 0.34 and
transformers 4.43 wrote."""

ANY_TRANSFORMERS_4 = """
add_cross_attention architectures bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id id2label is_decoder is_encoder_decoder label2id length_penalty max_length min_length
no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript typical_p use_bfloat16
"""
"""Fields of every configuration in transformers 4.40.2 and 4.51.3, read off their configuration_utils.py."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for name, fields in PUBLISHED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(fields))
    return tmp_path


def test_published_configurations_are_read_without_a_word(published: Path) -> None:
    from kontext.model.config import KontextConfig

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = read_config(published)
    assert config == KontextConfig(name=config.name)  # our defaults are Kontext's


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "model_index.json"])
def test_an_unknown_field_is_named_with_its_file_and_value(published: Path, name: str) -> None:
    edit_json(published / name, rope_scaling={"factor": 2.0}, sharpness=0.25, nothing=None)
    expected = f'{name}: unknown, and not used: rope_scaling = {{"factor": 2.0}}, sharpness = 0.25$'
    with pytest.warns(UserWarning, match=expected):
        read_config(published)


def test_what_the_installed_libraries_write_is_known(tmp_path: Path) -> None:
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    written = {
        "transformer": diffusers.FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, num_attention_heads=1, joint_attention_dim=8
        ),
        "vae": diffusers.AutoencoderKL(
            use_quant_conv=False, use_post_quant_conv=False, norm_num_groups=1, block_out_channels=(8,)
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }
    for folder, model in written.items():
        model.save_config(tmp_path / folder)
    for folder, config in (
        ("text_encoder", transformers.CLIPTextConfig()),
        ("text_encoder_2", transformers.T5Config(feed_forward_proj="gated-gelu")),
    ):
        (tmp_path / folder).mkdir()
        config.to_json_file(tmp_path / folder / "config.json", use_diff=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_transformer(tmp_path / "transformer")
        read_autoencoder(tmp_path / "vae")
        read_sampler(tmp_path / "scheduler")
        read_clip(tmp_path / "text_encoder")
        read_t5(tmp_path / "text_encoder_2", tmp_path)


def test_every_field_that_transformers_4_wrote_is_known() -> None:
    read = {"add_cross_attention", "eos_token_id", "is_decoder", "pruned_heads"}
    assert set(ANY_TRANSFORMERS_4.split()) <= harmless_fields.TEXT_ENCODER | read
