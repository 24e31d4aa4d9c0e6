"""Infers a component's sizes from its tensors' shapes, for files without a config.json.

What shapes do not show (RoPE's axes, the latents' shift and scale, …) is taken from FLUX.1 Kontext.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Protocol

from ..errors import KontextError
from .config import AutoencoderConfig, ClipConfig, T5Config, TransformerConfig
from .layouts import ComponentWeights, Layout

CLIP_HEAD_DIM = 64
"""The same in every CLIP text encoder."""


TRANSFORMER_NAMES: dict[Layout, dict[str, str]] = {
    "native": {
        "image": "img_in.weight",
        "text": "txt_in.weight",
        "pooled": "vector_in.in_layer.weight",
        "guidance": "guidance_in.in_layer.weight",
        "norm": "double_blocks.0.img_attn.norm.query_norm.scale",
        "mlp": "double_blocks.0.img_mlp.0.weight",
        "double": r"double_blocks\.(\d{1,4})\.",
        "single": r"single_blocks\.(\d{1,4})\.",
    },
    "diffusers": {
        "image": "x_embedder.weight",
        "text": "context_embedder.weight",
        "pooled": "time_text_embed.text_embedder.linear_1.weight",
        "guidance": "time_text_embed.guidance_embedder.linear_1.weight",
        "norm": "transformer_blocks.0.attn.norm_q.weight",
        "mlp": "transformer_blocks.0.ff.net.0.proj.weight",
        "double": r"transformer_blocks\.(\d{1,4})\.",
        "single": r"single_transformer_blocks\.(\d{1,4})\.",
    },
}


class HasShape(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class ShapeReader:
    """Looks up shapes of a component's tensors by name; errors name the tensor and the file."""

    def __init__(self, weights: ComponentWeights) -> None:
        self.weights = weights

    def of(self, name: str, dimensions: int) -> tuple[int, ...]:
        tensors: Mapping[str, HasShape] = self.weights.tensors
        if name not in tensors:
            raise KontextError(
                f"{self.weights.where} lacks tensor {name}: it is incomplete, or of another model"
            )
        shape = tensors[name].shape
        if len(shape) != dimensions or not all(shape):
            raise KontextError(
                f"{self.weights.where}: tensor {name} is {list(shape)}, expected {dimensions} dimensions"
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many blocks there are: the numbers 0, 1, … that match the group of `pattern` in the tensors' names."""
        expression = re.compile(pattern)
        found = {int(match[1]) for name in self.weights.tensors if (match := expression.match(name))}
        if found != set(range(len(found))):
            blocks = pattern.split("(")[0].replace("\\", "")
            raise KontextError(f"{self.weights.where}: some of its blocks {blocks}… are missing")
        return len(found)


def infer_transformer(weights: ComponentWeights) -> TransformerConfig:
    """Sizes of a transformer. RoPE's axes get their usual shares of a head: 1/8, 7/16 and 7/16."""
    shapes = ShapeReader(weights)
    names = TRANSFORMER_NAMES[weights.layout]
    hidden, in_channels = shapes.of(names["image"], 2)
    head_dim = shapes.of(names["norm"], 1)[0]
    if hidden % head_dim or head_dim % 16:
        raise KontextError(
            f"{weights.where}: head size {head_dim} is not a multiple of 16, or does not divide hidden size {hidden}"
        )
    return TransformerConfig(
        in_channels=in_channels,
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        num_double_blocks=shapes.count(names["double"]),
        num_single_blocks=shapes.count(names["single"]),
        mlp_ratio=shapes.of(names["mlp"], 2)[0] / hidden,
        axes_dim=(head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16),
        text_dim=shapes.of(names["text"], 2)[1],
        pooled_dim=shapes.of(names["pooled"], 2)[1],
        guidance_embed=names["guidance"] in weights.tensors,
    )


def infer_autoencoder(weights: ComponentWeights) -> AutoencoderConfig:
    """Sizes of FLUX.1's autoencoder. Files of other autoencoders lack their latents' shift and scale.

    Raises:
        KontextError: it is another autoencoder.
    """
    shapes, flux = ShapeReader(weights), AutoencoderConfig()
    if weights.layout == "native":
        levels, block, count = r"encoder\.down\.(\d{1,2})\.", "encoder.down.{}.block", r"\.(\d{1,2})\."
    else:
        levels, block = r"encoder\.down_blocks\.(\d{1,2})\.", "encoder.down_blocks.{}.resnets"
        count = r"\.(\d{1,2})\."
    channels = tuple(
        shapes.of(f"{block.format(level)}.0.conv1.weight", 4)[0] for level in range(shapes.count(levels))
    )
    layers = shapes.count(re.escape(block.format(0)) + count)
    latents = shapes.of("decoder.conv_in.weight", 4)[1]
    if (channels, layers, latents) != (flux.block_channels, flux.layers_per_block, flux.latent_channels):
        raise KontextError(
            f"{weights.where} is not FLUX.1's autoencoder (channels {list(channels)}, {latents} of them latent), and "
            "the file does not hold its latents' scale: name its diffusers folder with --base"
        )
    return flux


def with_positions(config: ClipConfig, weights: ComponentWeights) -> ClipConfig:
    """`config` for as many tokens as `weights` have positions: LongCLIP's 248 beside the configuration of CLIP's."""
    name = f"{clip_prefix(weights)}embeddings.position_embedding.weight"
    return dataclasses.replace(config, max_length=ShapeReader(weights).of(name, 2)[0])


def clip_prefix(weights: ComponentWeights) -> str:
    return "" if "embeddings.token_embedding.weight" in weights.tensors else "text_model."


def infer_clip(weights: ComponentWeights) -> ClipConfig:
    shapes, start = ShapeReader(weights), clip_prefix(weights)
    vocab, hidden = shapes.of(f"{start}embeddings.token_embedding.weight", 2)
    if hidden % CLIP_HEAD_DIM:
        raise KontextError(
            f"{weights.where}: CLIP's hidden size {hidden} is not a multiple of {CLIP_HEAD_DIM}"
        )
    return ClipConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=shapes.of(f"{start}encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_layers=shapes.count(re.escape(start) + r"encoder\.layers\.(\d{1,4})\."),
        num_heads=hidden // CLIP_HEAD_DIM,
        max_length=shapes.of(f"{start}embeddings.position_embedding.weight", 2)[0],
    )


def infer_t5(weights: ComponentWeights) -> T5Config:
    shapes = ShapeReader(weights)
    if weights.layout == "llama.cpp":
        embedding, bias, query = "token_embd.weight", "enc.blk.0.attn_rel_b.weight", "enc.blk.0.attn_q.weight"
        gate, blocks = "enc.blk.0.ffn_gate.weight", r"enc\.blk\.(\d{1,4})\."
    else:
        embedding = "shared.weight" if "shared.weight" in weights.tensors else "encoder.embed_tokens.weight"
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        query = "encoder.block.0.layer.0.SelfAttention.q.weight"
        gate, blocks = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", r"encoder\.block\.(\d{1,4})\."
    vocab, hidden = shapes.of(embedding, 2)
    buckets, heads = shapes.of(bias, 2)
    inner = shapes.of(query, 2)[0]
    if inner % heads:
        raise KontextError(f"{weights.where}: T5's {heads} heads do not divide its attention's {inner} rows")
    config = T5Config(
        vocab_size=vocab,
        hidden_size=hidden,
        head_dim=inner // heads,
        intermediate_size=shapes.of(gate, 2)[0],
        num_layers=shapes.count(blocks),
        num_heads=heads,
        relative_buckets=buckets,
    )
    if not config.buckets_fit:
        raise KontextError(f"{weights.where}: T5 has {buckets} buckets for its distances, expected 4 to 511")
    return config
