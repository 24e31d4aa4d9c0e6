"""Reads the configuration files of a diffusers folder as `KontextConfig`.

Every field that affects a picture is read or checked, so that no other architecture is exported by mistake. Fields that
are neither that nor in `harmless_fields` are warned of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..bundle_folder import refuse_bundle
from ..errors import KontextError
from . import harmless_fields
from .config import (
    LARGEST_SIZE,
    MOST_BLOCKS,
    MOST_LEVELS,
    MOST_RESNETS,
    MOST_TOKENS,
    AutoencoderConfig,
    ClipConfig,
    KontextConfig,
    SamplerConfig,
    SigmasConfig,
    T5Config,
    TransformerConfig,
)
from .json_fields import Fields
from .quantization_config import check_quantization
from .source_names import seen
from .tokenizer_config import prompt_tokens

PIPELINES = (
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
)
"""Pipelines with Kontext's network. FLUX.1 [dev] was trained without references, but has the same shapes."""

OTHER_PIPELINES = {
    "FluxFillPipeline": "its transformer takes a masked picture and a mask as further channels (384, not 64)",
    "FluxControlPipeline": "its transformer takes a control picture as further channels (128, not 64)",
    "FluxControlImg2ImgPipeline": "its transformer takes a control picture as further channels (128, not 64)",
    "FluxControlInpaintPipeline": "its transformer takes a control picture as further channels (128, not 64)",
    "FluxControlNetPipeline": "it adds a ControlNet",
    "FluxControlNetImg2ImgPipeline": "it adds a ControlNet",
    "FluxControlNetInpaintPipeline": "it adds a ControlNet",
    "FluxPriorReduxPipeline": "it has an image encoder and no transformer",
    "ChromaPipeline": "its transformer has another modulation, and no CLIP",
    "ChromaImg2ImgPipeline": "its transformer has another modulation, and no CLIP",
    "Flux2Pipeline": "FLUX.2 has other networks",
    "Flux2KleinPipeline": "FLUX.2 has other networks",
}
"""Pipelines that are taken for FLUX.1 Kontext's, and how they differ."""

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

T5_TOKENS = 512
"""FLUX's prompt length, used if neither the tokenizer nor the encoder has one, and the longest in diffusers."""


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
        refuse_bundle(folder)
        files = sorted(path.name for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern))
        hint = f"; it holds {files[0]}: name the file itself" if files else ", or an incomplete one"
        raise KontextError(f"{folder} has no model_index.json: it is not a diffusers checkpoint{hint}")
    if (folder / "transformer" / "model.onnx").exists():
        raise KontextError(
            f"{folder} holds ONNX graphs, as optimum writes and --to optimum does: export the checkpoint that they "
            "were made from"
        )
    index = Fields(index_path)
    name = index.get("_class_name")
    if name not in PIPELINES:
        differs = f"; {OTHER_PIPELINES[name]}" if isinstance(name, str) and name in OTHER_PIPELINES else ""
        raise index.error(
            "_class_name", f"{PIPELINES[0]}: only FLUX.1 Kontext checkpoints can be exported{differs}"
        )
    check_components(index)
    return index


def check_components(index: Fields) -> None:
    """Checks the class of every part; the tokenizers' may differ, since their files say what they are."""
    for component, (library, name) in COMPONENTS.items():
        value = index.get(component)
        given = value[1] if isinstance(value, list) and len(value) == 2 else None
        others = ("CLIPTextModelWithProjection",) if component == "text_encoder" else ()
        if given not in (None, name, *others) and not component.startswith("tokenizer"):
            raise index.error(component, f"{[library, name]}")
    if index.data.get("image_encoder") in (None, [None, None]):
        index.known.add("image_encoder")
    index.warn_of_others(harmless_fields.INDEX)


def read_config(folder: Path, given: Mapping[str, Any] | None = None) -> KontextConfig:
    """The configuration of a diffusers folder, without reading its weights. `given` are fields that the folder does not
    decide: the sizes of components whose weights come from other files.

    Raises:
        KontextError: a file is missing or damaged, or describes a network that is not FLUX.1 Kontext's.
    """
    index = read_index(folder)
    readers: dict[str, Callable[[], Any]] = {
        "name": lambda: seen(model_name(folder, index.data.get("_name_or_path"))),
        "transformer": lambda: read_transformer(folder / "transformer"),
        "autoencoder": lambda: read_autoencoder(folder / "vae"),
        "text_encoder": lambda: read_clip(folder / "text_encoder"),
        "text_encoder_2": lambda: read_t5(folder / "text_encoder_2", folder / "tokenizer_2"),
        "sampler": lambda: read_sampler(folder / "scheduler"),
    }
    known = given or {}
    config = KontextConfig(
        **{field: known[field] if field in known else read() for field, read in readers.items()}
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
    if fields.get("out_channels") not in (in_channels, None):
        raise fields.error(
            "in_channels",
            f"{fields.data['out_channels']}, its out_channels: FLUX.1 Kontext takes pictures as tokens, not as "
            "channels as FLUX.1 Fill (384) and the Control models (128) do",
        )
    heads, head_dim = fields.integer("num_attention_heads", 24), fields.integer("attention_head_dim", 128)
    if heads * head_dim > LARGEST_SIZE:
        raise fields.error("num_attention_heads", f"at most {LARGEST_SIZE} channels in all heads")
    axes = fields.integers("axes_dims_rope", (16, 56, 56))
    if len(axes) != 3 or sum(axes) != head_dim or any(axis % 2 for axis in axes):
        raise fields.error(
            "axes_dims_rope", f"three even numbers that add up to attention_head_dim, {head_dim}"
        )
    config = TransformerConfig(
        in_channels=in_channels,
        hidden_size=heads * head_dim,
        num_heads=heads,
        num_double_blocks=fields.integer("num_layers", 19, MOST_BLOCKS),
        num_single_blocks=fields.integer("num_single_layers", 38, MOST_BLOCKS),
        axes_dim=(axes[0], axes[1], axes[2]),
        text_dim=fields.integer("joint_attention_dim", 4096),
        pooled_dim=fields.integer("pooled_projection_dim", 768),
        guidance_embed=fields.flag("guidance_embeds"),
    )
    check_quantization(fields)
    fields.warn_of_others(harmless_fields.TRANSFORMER)
    return config


def read_autoencoder(folder: Path) -> AutoencoderConfig:
    fields = Fields(folder / "config.json")
    fields.require("_class_name", COMPONENTS["vae"][1])
    for name, value in (("in_channels", 3), ("out_channels", 3), ("act_fn", "silu")):
        fields.require(name, value, default=value)
    for name in ("use_quant_conv", "use_post_quant_conv"):
        fields.require(name, False, default=True)
    fields.require("mid_block_add_attention", True, default=True)
    channels = fields.integers("block_out_channels")
    if len(channels) > MOST_LEVELS:
        raise fields.error("block_out_channels", f"at most {MOST_LEVELS} levels")
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if fields.get(name) != [kind] * len(channels):
            raise fields.error(name, f"{len(channels)} times {kind}, one for each of block_out_channels")
    groups = fields.integer("norm_num_groups", 32)
    if any(width % groups for width in channels):
        raise fields.error(
            "norm_num_groups", f"a divisor of every one of block_out_channels {list(channels)}"
        )
    config = AutoencoderConfig(
        block_channels=channels,
        layers_per_block=fields.integer("layers_per_block", 1, MOST_RESNETS),
        latent_channels=fields.integer("latent_channels", 4),
        norm_groups=groups,
        scaling_factor=fields.number("scaling_factor", 0.18215),
        shift_factor=fields.number("shift_factor", 0.0),
        sample_size=fields.integer("sample_size", 32),
    )
    check_quantization(fields)
    fields.warn_of_others(harmless_fields.AUTOENCODER)
    return config


def check_text_encoder(fields: Fields, *model_types: str) -> None:
    """Checks what transformers' configurations of all models have in common."""
    fields.require("model_type", *model_types, default=model_types[0])
    for name in ("is_decoder", "add_cross_attention"):
        fields.require(name, False, default=False)
    if fields.get("pruned_heads"):
        raise fields.error("pruned_heads", "none: an encoder with all of its heads")


def read_clip(folder: Path) -> ClipConfig:
    fields = Fields(folder / "config.json")
    check_text_encoder(fields, "clip_text_model", "clip")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size, {hidden}")
    config = ClipConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers", most=MOST_BLOCKS),
        num_heads=heads,
        max_length=fields.integer("max_position_embeddings", 77),
        activation=fields.require("hidden_act", "quick_gelu", "gelu", default="quick_gelu"),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
        eos_id=fields.integer("eos_token_id", 49407),
    )
    check_quantization(fields)
    fields.warn_of_others(harmless_fields.CLIP)
    return config


def read_t5(folder: Path, tokenizer: Path) -> T5Config:
    fields = Fields(folder / "config.json")
    check_text_encoder(fields, "t5")
    fields.require("feed_forward_proj", "gated-gelu")
    fields.require("dense_act_fn", "gelu_new", default="gelu_new")
    fields.require("is_gated_act", True, default=True)
    config = T5Config(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("d_model"),
        head_dim=fields.integer("d_kv"),
        intermediate_size=fields.integer("d_ff"),
        num_layers=fields.integer("num_layers", most=MOST_BLOCKS),
        num_heads=fields.integer("num_heads"),
        relative_buckets=fields.integer("relative_attention_num_buckets", 32),
        relative_max_distance=fields.integer("relative_attention_max_distance", 128),
        layer_norm_eps=fields.number("layer_norm_epsilon", 1e-6),
        max_length=prompt_tokens(
            tokenizer / "tokenizer_config.json", fields.integer("n_positions", T5_TOKENS, MOST_TOKENS)
        ),
    )
    if not config.buckets_fit:
        most = 4 * config.relative_max_distance - 1
        raise fields.error("relative_attention_num_buckets", f"a whole number from 4 to {most}")
    check_quantization(fields)
    fields.warn_of_others(harmless_fields.T5)
    return config


def read_sampler(folder: Path) -> SamplerConfig:
    fields = Fields(folder / "scheduler_config.json")
    fields.require("_class_name", COMPONENTS["scheduler"][1])
    fields.require("num_train_timesteps", 1000, default=1000)
    for name in ("invert_sigmas", "stochastic_sampling"):
        fields.require(name, False, default=False)
    base_tokens, max_tokens = (
        fields.integer("base_image_seq_len", 256),
        fields.integer("max_image_seq_len", 4096),
    )
    if max_tokens <= base_tokens:
        raise fields.error("max_image_seq_len", f"more than base_image_seq_len, {base_tokens}")
    config = SamplerConfig(
        base_shift=fields.number("base_shift", 0.5),
        max_shift=fields.number("max_shift", 1.15),
        base_tokens=base_tokens,
        max_tokens=max_tokens,
        sigmas=read_sigmas(fields),
    )
    if config.sigmas.time_shift == "linear":
        for name, value in (("base_shift", config.base_shift), ("max_shift", config.max_shift)):
            if value <= 0:
                raise fields.error(name, "more than 0, as time_shift_type is 'linear'")
    fields.warn_of_others(harmless_fields.SCHEDULER)
    return config


def read_sigmas(fields: Fields) -> SigmasConfig:
    """How diffusers' scheduler changes the evenly spaced sigmas that FLUX's pipelines pass to it."""
    kind = fields.require("time_shift_type", "exponential", "linear", default="exponential")
    shift = fields.number("shift", 1.0)
    if not fields.flag("use_dynamic_shifting"):
        kind = "constant"
        if shift <= 0:
            raise fields.error("shift", "a number above 0")
    terminal = fields.number("shift_terminal", 0.0)
    if not 0 <= terminal < 1:
        raise fields.error("shift_terminal", "a number from 0 to 1, or null")
    spacings = [name for name in ("karras", "exponential", "beta") if fields.flag(f"use_{name}_sigmas")]
    if len(spacings) > 1:
        raise fields.error(f"use_{spacings[1]}_sigmas", f"False beside use_{spacings[0]}_sigmas")
    for name in ("sigma_min", "sigma_max"):
        if spacings:
            fields.require(name, None)
        else:
            fields.known.add(name)  # only the other spacings use it
    return SigmasConfig(
        kind, shift if kind == "constant" else 1.0, spacings[0] if spacings else "uniform", terminal or None
    )
