"""Writes the configuration files of a diffusers folder."""

from __future__ import annotations

from .config import AutoencoderConfig, ClipConfig, KontextConfig, SamplerConfig, T5Config, TransformerConfig
from .diffusers_config import COMPONENTS, PIPELINES


def config_files(config: KontextConfig, dtype: str) -> dict[str, dict[str, object]]:
    """The JSON files of a diffusers folder: path in the folder → contents. `dtype` is the weights', such as
    "bfloat16"."""
    if config.transformer.mlp_ratio != 4:
        raise ValueError("diffusers' FluxTransformer2DModel has a fixed MLP ratio of 4")
    index: dict[str, object] = {name: list(kind) for name, kind in COMPONENTS.items()}
    index |= {"_class_name": PIPELINES[0], "_diffusers_version": "0.35.0", "_name_or_path": config.name}
    index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    return {
        "model_index.json": index,
        "transformer/config.json": transformer_fields(config.transformer),
        "vae/config.json": autoencoder_fields(config.autoencoder),
        "text_encoder/config.json": clip_fields(config.text_encoder, dtype),
        "text_encoder_2/config.json": t5_fields(config.text_encoder_2, dtype),
        "scheduler/scheduler_config.json": scheduler_fields(config.sampler),
    }


def scheduler_fields(config: SamplerConfig) -> dict[str, object]:
    sigmas = config.sigmas
    fields = {
        "_class_name": COMPONENTS["scheduler"][1],
        "base_image_seq_len": config.base_tokens,
        "base_shift": config.base_shift,
        "max_image_seq_len": config.max_tokens,
        "max_shift": config.max_shift,
        "num_train_timesteps": 1000,
        "shift": sigmas.shift if sigmas.time_shift == "constant" else 3.0,
        "use_dynamic_shifting": sigmas.time_shift != "constant",
    }
    if sigmas.time_shift == "linear":
        fields["time_shift_type"] = "linear"
    if sigmas.spacing != "uniform":
        fields[f"use_{sigmas.spacing}_sigmas"] = True
    if sigmas.terminal is not None:
        fields["shift_terminal"] = sigmas.terminal
    return fields


def transformer_fields(config: TransformerConfig) -> dict[str, object]:
    return {
        "_class_name": COMPONENTS["transformer"][1],
        "attention_head_dim": config.head_dim,
        "axes_dims_rope": list(config.axes_dim),
        "guidance_embeds": config.guidance_embed,
        "in_channels": config.in_channels,
        "joint_attention_dim": config.text_dim,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_double_blocks,
        "num_single_layers": config.num_single_blocks,
        "out_channels": None,
        "patch_size": 1,
        "pooled_projection_dim": config.pooled_dim,
    }


def autoencoder_fields(config: AutoencoderConfig) -> dict[str, object]:
    levels = len(config.block_channels)
    return {
        "_class_name": COMPONENTS["vae"][1],
        "act_fn": "silu",
        "block_out_channels": list(config.block_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": True,
        "norm_num_groups": config.norm_groups,
        "out_channels": 3,
        "sample_size": config.sample_size,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def clip_fields(config: ClipConfig, dtype: str) -> dict[str, object]:
    return {
        "architectures": [COMPONENTS["text_encoder"][1]],
        "bos_token_id": 0,
        "eos_token_id": config.eos_id,
        "hidden_act": config.activation,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": 1,
        "projection_dim": config.hidden_size,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
    }


def t5_fields(config: T5Config, dtype: str) -> dict[str, object]:
    return {
        "architectures": [COMPONENTS["text_encoder_2"][1]],
        "d_ff": config.intermediate_size,
        "d_kv": config.head_dim,
        "d_model": config.hidden_size,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": config.layer_norm_eps,
        "model_type": "t5",
        "n_positions": config.max_length,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.relative_max_distance,
        "relative_attention_num_buckets": config.relative_buckets,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
    }
