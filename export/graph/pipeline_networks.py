"""The networks as diffusers' pipelines call them, which optimum-onnx and Olive expect: five graphs with their names.

The transformer computes modulations and RoPE tables itself, prompts may have any length, and the autoencoder's latents
are as they are, not normalized.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...model.autoencoder import Decoder, Encoder
from ...model.config import AutoencoderConfig, KontextConfig, TransformerConfig
from ...model.rope import rope_tables
from ...model.text_encoders import ClipTextEncoder, T5Encoder
from ...model.transformer import Modulation, Transformer
from .blocks import RepeatedBlock, repeated_blocks
from .interface import Interface, constants

PIPELINE_GRAPHS: Mapping[str, tuple[str, ...]] = {
    "pipeline_text_encoder": ("text_encoder",),
    "pipeline_text_encoder_2": ("text_encoder_2",),
    "pipeline_vae_encoder": ("vae_encoder",),
    "pipeline_vae_decoder": ("vae_decoder",),
    "pipeline_transformer": ("modulation", "transformer"),
}
"""Graph, in the order that an edit runs them → the networks whose weights it has."""

LONGEST_PROMPT = 512
"""Tokens of T5 that diffusers' pipelines allow."""

MODULATION = "modulation."
"""Prefix of the modulation's weights in `PipelineTransformer`, which the graph's weights lack."""


class PipelineTransformer(Transformer):
    """The denoiser with its modulation: what diffusers calls FluxTransformer2DModel."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.modulation = Modulation(config)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Velocity [batch, image_tokens, in_channels] of all image tokens, references' too.

        Args:
            hidden_states: [batch, image_tokens, in_channels], packed latents of the target, then of references.
            encoder_hidden_states: [batch, text_tokens, text_dim], T5's output.
            pooled_projections: [batch, pooled_dim], CLIP's.
            timestep, guidance: fp32 [batch]; time in [0, 1]; no guidance for models without its embedding.
            img_ids, txt_ids: fp32 [tokens, 3], positions of (image index, row, column).
        """
        ids = torch.cat((txt_ids, img_ids))
        cos, sin = rope_tables(ids, self.config.axes_dim, self.config.theta, torch.float32)
        double, single, final = self.modulation(
            timestep, timestep if guidance is None else guidance, pooled_projections
        )
        x = self.joint_stream(hidden_states, encoder_hidden_states, cos, sin, double, single)
        return self.velocity(x[:, encoder_hidden_states.shape[1] :], final)


class PipelineTextEncoder(ClipTextEncoder):
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """input_ids int64 [batch, tokens] → hidden states [batch, tokens, hidden_size], pooled [batch, hidden_size]."""
        x = self.hidden_states(input_ids)
        return x, self.pool(x, input_ids)


class PipelineTextEncoder2(T5Encoder):
    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids int64 [batch, tokens], at most the table's → [batch, tokens, hidden_size]."""
        tokens = input_ids.shape[1]
        return self.encode(input_ids, self.buckets[:tokens, :tokens])


class PipelineVaeEncoder(Encoder):
    def forward(self, image: Tensor) -> Tensor:
        """image [batch, 3, H, W] in [-1, 1] → means, then log-variances [batch, 2 * latent_channels, H/8, W/8]."""
        return self.posterior(image)


class PipelineVaeDecoder(Decoder):
    def forward(self, latents: Tensor) -> Tensor:
        """latents [batch, latent_channels, h, w], not normalized → picture [batch, 3, 8h, 8w]."""
        return self.decode(latents)


def build_pipeline_network(graph: str, config: KontextConfig) -> nn.Module:
    """The module of one of `PIPELINE_GRAPHS`, initialized by PyTorch."""
    if graph == "pipeline_transformer":
        return PipelineTransformer(config.transformer)
    if graph == "pipeline_text_encoder":
        return PipelineTextEncoder(config.text_encoder)
    if graph == "pipeline_text_encoder_2":
        return PipelineTextEncoder2(with_longest_prompt(config).text_encoder_2)
    if graph == "pipeline_vae_encoder":
        return PipelineVaeEncoder(config.autoencoder)
    if graph == "pipeline_vae_decoder":
        return PipelineVaeDecoder(config.autoencoder)
    raise ValueError(f"no graph is called {graph!r}")


def with_longest_prompt(config: KontextConfig) -> KontextConfig:
    """The config whose T5 has a table for prompts of `LONGEST_PROMPT` tokens or more."""
    t5 = config.text_encoder_2
    longest = max(LONGEST_PROMPT, t5.max_length)
    return dataclasses.replace(config, text_encoder_2=dataclasses.replace(t5, max_length=longest))


def pipeline_constants(network: str, config: KontextConfig) -> dict[str, Tensor]:
    """`constants` of a network in these graphs."""
    return constants(network, with_longest_prompt(config))


def pipeline_interface(graph: str, config: KontextConfig) -> Interface:
    """The interface of one of `PIPELINE_GRAPHS`: optimum-onnx's names, dimensions included, which it computes the
    outputs' shapes with."""
    transformer, t5 = config.transformer, config.text_encoder_2
    if graph == "pipeline_transformer":
        image = ("batch_size", "packed_height_width", transformer.in_channels)
        inputs: dict[str, tuple[int | str, ...]] = {
            "hidden_states": image,
            "encoder_hidden_states": ("batch_size", "sequence_length", transformer.text_dim),
            "pooled_projections": ("batch_size", transformer.pooled_dim),
            "timestep": ("batch_size",),
            "img_ids": ("packed_height_width", 3),
            "txt_ids": ("sequence_length", 3),
        }
        if transformer.guidance_embed:
            inputs["guidance"] = ("batch_size",)
        wide = ("timestep", "img_ids", "txt_ids", "guidance")
        return Interface(inputs, {"out_hidden_states": image}, wide=wide)
    ids: dict[str, tuple[int | str, ...]] = {"input_ids": ("batch_size", "sequence_length")}
    if graph == "pipeline_text_encoder":
        clip = config.text_encoder.hidden_size
        return Interface(
            ids,
            {
                "last_hidden_state": ("batch_size", "sequence_length", clip),
                "pooler_output": ("batch_size", clip),
            },
            integers=True,
        )
    if graph == "pipeline_text_encoder_2":
        states = ("batch_size", "sequence_length", t5.hidden_size)
        return Interface(ids, {"last_hidden_state": states}, integers=True)
    return vae_interface(graph, config.autoencoder)


def vae_interface(graph: str, config: AutoencoderConfig) -> Interface:
    scale, channels = config.downscale, config.latent_channels
    sides = (f"{scale}*latent_height", f"{scale}*latent_width")
    picture: tuple[int | str, ...] = ("batch_size", 3, *sides)
    if graph == "pipeline_vae_encoder":
        labels = {f"{scale}*latent_{side}": f"sample_{side}" for side in ("height", "width")}
        labels |= {f"latent_{side}": f"sample_{side} / {scale}" for side in ("height", "width")}
        latents = ("batch_size", 2 * channels, "latent_height", "latent_width")
        return Interface({"sample": picture}, {"latent_parameters": latents}, labels=labels)
    if graph == "pipeline_vae_decoder":
        labels = {f"{scale}*latent_{side}": f"latent_{side} * {scale}" for side in ("height", "width")}
        latents = ("batch_size", channels, "latent_height", "latent_width")
        return Interface({"latent_sample": latents}, {"sample": picture}, labels=labels)
    raise ValueError(f"no graph is called {graph!r}")


def pipeline_blocks(graph: str, config: KontextConfig) -> list[RepeatedBlock]:
    """As `repeated_blocks`, with prompts of any length."""
    return repeated_blocks(PIPELINE_GRAPHS[graph][-1], config, "sequence_length")
