"""Every weight of the six networks by name, shape and kind, computed from the configuration without PyTorch.

Reading a header should not wait seconds for PyTorch. The networks are in `transformer`, `autoencoder` and
`text_encoders`; a test holds these lists equal to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .config import TIME_CHANNELS, AutoencoderConfig, ClipConfig, KontextConfig, T5Config, TransformerConfig


class Weight(NamedTuple):
    """A weight as PyTorch has it: a linear's `shape` is [out, in]."""

    name: str
    shape: tuple[int, ...]
    is_linear: bool = False
    """Whether it is the matrix of a linear."""


Weights = Iterator[Weight]


def network_weights(network: str, config: KontextConfig) -> list[Weight]:
    """The weights of a network, a key of `NETWORKS`, in its order."""
    networks: dict[str, Callable[[], Weights]] = {
        "text_encoder": lambda: clip(config.text_encoder),
        "text_encoder_2": lambda: t5(config.text_encoder_2),
        "vae_encoder": lambda: encoder(config.autoencoder),
        "vae_decoder": lambda: decoder(config.autoencoder),
        "modulation": lambda: modulation(config.transformer),
        "transformer": lambda: transformer(config.transformer),
    }
    if network not in networks:
        raise ValueError(f"no network is called {network!r}")
    return list(networks[network]())


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Weights:
    yield Weight(f"{name}.weight", (outputs, inputs), True)
    if bias:
        yield Weight(f"{name}.bias", (outputs,))


def norm(name: str, channels: int) -> Weights:
    yield Weight(f"{name}.weight", (channels,))
    yield Weight(f"{name}.bias", (channels,))


def convolution(name: str, inputs: int, outputs: int, side: int = 3) -> Weights:
    yield Weight(f"{name}.weight", (outputs, inputs, side, side))
    yield Weight(f"{name}.bias", (outputs,))


def embedder(name: str, inputs: int, hidden: int) -> Weights:
    yield from linear(f"{name}.in_layer", inputs, hidden)
    yield from linear(f"{name}.out_layer", hidden, hidden)


def modulation(config: TransformerConfig) -> Weights:
    hidden = config.hidden_size
    yield from embedder("time_in", TIME_CHANNELS, hidden)
    if config.guidance_embed:
        yield from embedder("guidance_in", TIME_CHANNELS, hidden)
    yield from embedder("vector_in", config.pooled_dim, hidden)
    for index in range(config.num_double_blocks):
        for stream in ("img", "txt"):
            yield from linear(f"double_blocks.{index}.{stream}_mod.lin", hidden, 6 * hidden)
    for index in range(config.num_single_blocks):
        yield from linear(f"single_blocks.{index}.modulation.lin", hidden, 3 * hidden)
    yield from linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden)


def query_key_norms(name: str, head_dim: int) -> Weights:
    yield Weight(f"{name}.query_norm.scale", (head_dim,))
    yield Weight(f"{name}.key_norm.scale", (head_dim,))


def transformer(config: TransformerConfig) -> Weights:
    hidden, mlp = config.hidden_size, config.mlp_size
    yield from linear("img_in", config.in_channels, hidden)
    yield from linear("txt_in", config.text_dim, hidden)
    for index in range(config.num_double_blocks):
        block = f"double_blocks.{index}"
        for stream in ("img", "txt"):
            yield from linear(f"{block}.{stream}_attn.qkv", hidden, 3 * hidden)
            yield from query_key_norms(f"{block}.{stream}_attn.norm", config.head_dim)
            yield from linear(f"{block}.{stream}_attn.proj", hidden, hidden)
        for stream in ("img", "txt"):
            yield from linear(f"{block}.{stream}_mlp.0", hidden, mlp)
            yield from linear(f"{block}.{stream}_mlp.2", mlp, hidden)
    for index in range(config.num_single_blocks):
        block = f"single_blocks.{index}"
        yield from linear(f"{block}.linear1", hidden, 3 * hidden + mlp)
        yield from linear(f"{block}.linear2", hidden + mlp, hidden)
        yield from query_key_norms(f"{block}.norm", config.head_dim)
    yield from linear("final_layer.linear", hidden, config.in_channels)


def resnet_block(name: str, inputs: int, outputs: int) -> Weights:
    yield from norm(f"{name}.norm1", inputs)
    yield from convolution(f"{name}.conv1", inputs, outputs)
    yield from norm(f"{name}.norm2", outputs)
    yield from convolution(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from convolution(f"{name}.nin_shortcut", inputs, outputs, side=1)


def level(name: str, inputs: int, outputs: int, blocks: int) -> Weights:
    for index in range(blocks):
        yield from resnet_block(f"{name}.block.{index}", inputs if index == 0 else outputs, outputs)


def middle(channels: int) -> Weights:
    yield from resnet_block("mid.block_1", channels, channels)
    yield from norm("mid.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        yield from linear(f"mid.attn_1.{part}", channels, channels)
    yield from resnet_block("mid.block_2", channels, channels)


def encoder(config: AutoencoderConfig) -> Weights:
    channels = config.block_channels
    yield from convolution("conv_in", 3, channels[0])
    for index, outputs in enumerate(channels):
        yield from level(f"down.{index}", channels[max(index - 1, 0)], outputs, config.layers_per_block)
        if index < len(channels) - 1:
            yield from convolution(f"down.{index}.downsample.conv", outputs, outputs)
    yield from middle(channels[-1])
    yield from norm("norm_out", channels[-1])
    yield from convolution("conv_out", channels[-1], 2 * config.latent_channels)


def decoder(config: AutoencoderConfig) -> Weights:
    channels = config.block_channels
    yield from convolution("conv_in", config.latent_channels, channels[-1])
    yield from middle(channels[-1])
    for index, outputs in enumerate(channels):
        inputs = channels[min(index + 1, len(channels) - 1)]
        yield from level(f"up.{index}", inputs, outputs, config.layers_per_block + 1)
        if index > 0:
            yield from convolution(f"up.{index}.upsample.conv", outputs, outputs)
    yield from norm("norm_out", channels[0])
    yield from convolution("conv_out", channels[0], 3)


def clip(config: ClipConfig) -> Weights:
    hidden = config.hidden_size
    yield Weight("text_model.embeddings.token_embedding.weight", (config.vocab_size, hidden))
    yield Weight("text_model.embeddings.position_embedding.weight", (config.max_length, hidden))
    for index in range(config.num_layers):
        layer = f"text_model.encoder.layers.{index}"
        yield from norm(f"{layer}.layer_norm1", hidden)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{part}", hidden, hidden)
        yield from norm(f"{layer}.layer_norm2", hidden)
        yield from linear(f"{layer}.mlp.fc1", hidden, config.intermediate_size)
        yield from linear(f"{layer}.mlp.fc2", config.intermediate_size, hidden)
    yield from norm("text_model.final_layer_norm", hidden)


def t5(config: T5Config) -> Weights:
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    yield Weight("shared.weight", (config.vocab_size, hidden))
    for index in range(config.num_layers):
        attention, gated = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        yield Weight(f"{attention}.layer_norm.weight", (hidden,))
        for part in ("q", "k", "v"):
            yield from linear(f"{attention}.SelfAttention.{part}", hidden, inner, bias=False)
        yield from linear(f"{attention}.SelfAttention.o", inner, hidden, bias=False)
        if index == 0:
            table = (config.relative_buckets, config.num_heads)
            yield Weight(f"{attention}.SelfAttention.relative_attention_bias.weight", table)
        yield Weight(f"{gated}.layer_norm.weight", (hidden,))
        for part in ("wi_0", "wi_1"):
            yield from linear(f"{gated}.DenseReluDense.{part}", hidden, config.intermediate_size, bias=False)
        yield from linear(f"{gated}.DenseReluDense.wo", config.intermediate_size, hidden, bias=False)
    yield Weight("encoder.final_layer_norm.weight", (hidden,))
