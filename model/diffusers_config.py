"""Reads the configuration files of a diffusers folder as `KontextConfig`, and writes them.

Every field that affects the network is read or checked, so that no other architecture is exported by mistake.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import KontextError
from .config import AutoencoderConfig, ClipConfig, KontextConfig, SamplerConfig, T5Config, TransformerConfig

PIPELINES = ("FluxKontextPipeline", "FluxPipeline", "FluxImg2ImgPipeline")
"""Pipelines with Kontext's network. FLUX.1 [dev] was trained without references, but has the same shapes."""

COMPONENTS = {
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "T5TokenizerFast"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}
"""Subfolders of a FLUX.1 Kontext folder → library and class."""

LARGEST_SIZE = 1 << 20
"""Far above any width, depth or vocabulary of this family of models: a larger number means a damaged file."""

T5_TOKENS = 512
"""FLUX's prompt length, used if neither the tokenizer nor the encoder has one."""


class Fields:
    """The fields of one JSON file, checked when read; errors name the file and the field."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise KontextError(f"{path} is missing: the checkpoint is incomplete") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise KontextError(f"{path} is not a JSON file: {error}") from None
        except OSError as error:
            raise KontextError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(data, dict):
            raise KontextError(f"{path} should hold a JSON object")
        self.data: dict[str, Any] = data

    def error(self, name: str, expected: str) -> KontextError:
        return KontextError(f"{self.path}: {name} is {self.data.get(name)!r}, expected {expected}")

    def integer(self, name: str, default: int | None = None) -> int:
        """A size or count: at least 1."""
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SIZE:
            raise self.error(name, f"a whole number from 1 to {LARGEST_SIZE}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e12:
            raise self.error(name, "a number")
        return float(value)

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        value = self.data.get(name)
        if value is None and default is not None:
            return tuple(default)
        if (
            not isinstance(value, list)
            or not value
            or not all(type(v) is int and 1 <= v <= LARGEST_SIZE for v in value)
        ):
            raise self.error(name, "a list of whole numbers")
        return tuple(value)

    def require(self, name: str, *allowed: object, default: object = None) -> Any:
        """The field's value, which must be one of `allowed`; `default` if the field is missing."""
        value = self.data.get(name, default)
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise self.error(name, " or ".join(repr(choice) for choice in allowed))
        return value


def read_index(folder: Path) -> Fields:
    """model_index.json of a diffusers folder.

    Raises:
        KontextError: it is missing, or belongs to another pipeline.
    """
    index_path = folder / "model_index.json"
    if not folder.is_dir():
        raise KontextError(
            f"{folder} is not a folder: a diffusers checkpoint is a folder with a model_index.json"
        )
    if not index_path.exists():
        if is_bundle(folder):
            raise KontextError(
                f"{folder} is a bundle, which cannot be exported again: name its checkpoint instead"
            )
        files = sorted(path.name for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern))
        hint = f"; it holds {files[0]}: name the file itself" if files else ", or an incomplete one"
        raise KontextError(f"{folder} has no model_index.json: it is not a diffusers checkpoint{hint}")
    index = Fields(index_path)
    if index.data.get("_class_name") not in PIPELINES:
        raise index.error("_class_name", f"{PIPELINES[0]}: only FLUX.1 Kontext checkpoints can be exported")
    return index


def is_bundle(folder: Path) -> bool:
    """Whether a folder's manifest.json is that of a bundle; other software has files of that name too."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == "kontext-bundle"


def read_config(folder: Path) -> KontextConfig:
    """The configuration of a diffusers folder, without reading its weights.

    Raises:
        KontextError: a file is missing or damaged, or describes a network that is not FLUX.1 Kontext's.
    """
    index = read_index(folder)
    config = KontextConfig(
        name=model_name(folder, index.data.get("_name_or_path")),
        transformer=read_transformer(folder / "transformer"),
        autoencoder=read_autoencoder(folder / "vae"),
        text_encoder=read_clip(folder / "text_encoder"),
        text_encoder_2=read_t5(folder / "text_encoder_2", folder / "tokenizer_2"),
        sampler=read_sampler(folder / "scheduler"),
    )
    check_fit(str(folder), config)
    return config


def check_fit(where: str, config: KontextConfig) -> None:
    """Raises KontextError if components have different sizes, as those of two models do."""
    transformer = config.transformer
    for field, size, part, given in (
        (
            "joint_attention_dim",
            transformer.text_dim,
            "text_encoder_2's d_model",
            config.text_encoder_2.hidden_size,
        ),
        (
            "pooled_projection_dim",
            transformer.pooled_dim,
            "text_encoder's hidden_size",
            config.text_encoder.hidden_size,
        ),
        (
            "in_channels",
            transformer.in_channels,
            "4 x vae's latent_channels",
            4 * config.autoencoder.latent_channels,
        ),
    ):
        if size != given:
            raise KontextError(f"{where}: the transformer's {field} is {size}, but {part} is {given}")


def model_name(folder: Path, recorded: object) -> str:
    """A name for the model: the recorded one, else the hub's name in a cache path, else the folder's name."""
    if isinstance(recorded, str) and recorded.strip("/"):
        return recorded.strip("/").rsplit("/", 1)[-1]
    for part in folder.absolute().parts:
        if part.startswith("models--"):  # ~/.cache/huggingface/hub/models--owner--name/snapshots/<commit>
            return part.rsplit("--", 1)[-1]
    return folder.resolve().name or "model"


def read_transformer(folder: Path) -> TransformerConfig:
    fields = Fields(folder / "config.json")
    fields.require("_class_name", COMPONENTS["transformer"][1])
    fields.require("patch_size", 1, default=1)
    in_channels = fields.integer("in_channels", 64)
    fields.require("out_channels", in_channels, None)
    heads, head_dim = fields.integer("num_attention_heads", 24), fields.integer("attention_head_dim", 128)
    axes = fields.integers("axes_dims_rope", (16, 56, 56))
    if len(axes) != 3 or sum(axes) != head_dim or any(axis % 2 for axis in axes):
        raise fields.error(
            "axes_dims_rope", f"three even numbers that add up to attention_head_dim, {head_dim}"
        )
    return TransformerConfig(
        in_channels=in_channels,
        hidden_size=heads * head_dim,
        num_heads=heads,
        num_double_blocks=fields.integer("num_layers", 19),
        num_single_blocks=fields.integer("num_single_layers", 38),
        axes_dim=(axes[0], axes[1], axes[2]),
        text_dim=fields.integer("joint_attention_dim", 4096),
        pooled_dim=fields.integer("pooled_projection_dim", 768),
        guidance_embed=fields.require("guidance_embeds", True, False, default=False),
    )


def read_autoencoder(folder: Path) -> AutoencoderConfig:
    fields = Fields(folder / "config.json")
    fields.require("_class_name", COMPONENTS["vae"][1])
    for name, value in (("in_channels", 3), ("out_channels", 3), ("act_fn", "silu")):
        fields.require(name, value, default=value)
    for name in ("use_quant_conv", "use_post_quant_conv"):
        fields.require(name, False, default=True)
    fields.require("mid_block_add_attention", True, default=True)
    channels = fields.integers("block_out_channels")
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if fields.data.get(name) != [kind] * len(channels):
            raise fields.error(name, f"{len(channels)} times {kind}, one for each of block_out_channels")
    groups = fields.integer("norm_num_groups", 32)
    if any(width % groups for width in channels):
        raise fields.error(
            "norm_num_groups", f"a divisor of every one of block_out_channels {list(channels)}"
        )
    return AutoencoderConfig(
        block_channels=channels,
        layers_per_block=fields.integer("layers_per_block", 1),
        latent_channels=fields.integer("latent_channels", 4),
        norm_groups=groups,
        scaling_factor=fields.number("scaling_factor", 0.18215),
        shift_factor=fields.number("shift_factor", 0.0),
        sample_size=fields.integer("sample_size", 32),
    )


def read_clip(folder: Path) -> ClipConfig:
    fields = Fields(folder / "config.json")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size, {hidden}")
    return ClipConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        max_length=fields.integer("max_position_embeddings", 77),
        activation=fields.require("hidden_act", "quick_gelu", "gelu", default="quick_gelu"),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
        eos_id=fields.integer("eos_token_id", 49407),
    )


def read_t5(folder: Path, tokenizer: Path) -> T5Config:
    fields = Fields(folder / "config.json")
    fields.require("model_type", "t5", default="t5")
    fields.require("feed_forward_proj", "gated-gelu")
    return T5Config(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("d_model"),
        head_dim=fields.integer("d_kv"),
        intermediate_size=fields.integer("d_ff"),
        num_layers=fields.integer("num_layers"),
        num_heads=fields.integer("num_heads"),
        relative_buckets=fields.integer("relative_attention_num_buckets", 32),
        relative_max_distance=fields.integer("relative_attention_max_distance", 128),
        layer_norm_eps=fields.number("layer_norm_epsilon", 1e-6),
        max_length=prompt_tokens(
            tokenizer / "tokenizer_config.json", fields.integer("n_positions", T5_TOKENS)
        ),
    )


def prompt_tokens(tokenizer_config: Path, default: int) -> int:
    """The tokenizer's limit; `default` if it is missing or huge (transformers' "no limit")."""
    if not tokenizer_config.exists():
        return default
    limit = Fields(tokenizer_config).data.get("model_max_length")
    return limit if type(limit) is int and 1 <= limit <= 4096 else default


def read_sampler(folder: Path) -> SamplerConfig:
    fields = Fields(folder / "scheduler_config.json")
    fields.require("_class_name", COMPONENTS["scheduler"][1])
    fields.require("use_dynamic_shifting", True, default=False)
    fields.require("time_shift_type", "exponential", default="exponential")
    return SamplerConfig(
        base_shift=fields.number("base_shift", 0.5),
        max_shift=fields.number("max_shift", 1.15),
        base_tokens=fields.integer("base_image_seq_len", 256),
        max_tokens=fields.integer("max_image_seq_len", 4096),
    )


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
        "scheduler/scheduler_config.json": {
            "_class_name": COMPONENTS["scheduler"][1],
            "base_image_seq_len": config.sampler.base_tokens,
            "base_shift": config.sampler.base_shift,
            "max_image_seq_len": config.sampler.max_tokens,
            "max_shift": config.sampler.max_shift,
            "num_train_timesteps": 1000,
            "shift": 3.0,
            "use_dynamic_shifting": True,
        },
    }


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
