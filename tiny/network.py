"""The embedded model as one trainable module: text encoders, modulation and transformer; packing and initialization."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.config import KontextConfig
from ..model.rope import position_ids, rope_tables
from ..model.text_encoders import ClipTextEncoder, T5Encoder
from ..model.transformer import Modulation, Transformer


def pack(latents: Tensor) -> Tensor:
    """[batch, channels, h, w] → tokens [batch, h/2 * w/2, 4 * channels], channel order (c, 2, 2)."""
    batch, channels, h, w = latents.shape
    return (
        latents.view(batch, channels, h // 2, 2, w // 2, 2)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(batch, h * w // 4, channels * 4)
    )


class KontextNetwork(nn.Module):
    """Computes the velocity from noisy latents, reference latents, prompts, time and guidance."""

    def __init__(self, config: KontextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = ClipTextEncoder(config.text_encoder)
        self.text_encoder_2 = T5Encoder(config.text_encoder_2)
        self.modulation = Modulation(config.transformer)
        self.transformer = Transformer(config.transformer)
        side = config.autoencoder.sample_size // config.autoencoder.downscale // 2
        text = torch.zeros(config.text_encoder_2.max_length, 3, dtype=torch.float64)
        images = [position_ids(index, side, side) for index in (0, 1)]
        sizes = config.transformer.axes_dim, config.transformer.theta
        self.tables = [rope_tables(torch.cat((text, *images[:n])), *sizes) for n in (1, 2)]
        """RoPE tables without and with a reference."""

    def encode_text(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled vector [batch, pooled_dim] and the sequence [batch, text_tokens, text_dim]."""
        return self.text_encoder(clip_ids), self.text_encoder_2(t5_ids)

    def forward(
        self,
        target: Tensor,
        reference: Tensor,
        pooled: Tensor,
        text: Tensor,
        timestep: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """The velocity at `target`; `target` and `reference` are packed latents, `reference` may have no tokens."""
        cos, sin = self.tables[int(reference.shape[1] > 0)]
        modulation = self.modulation(timestep, guidance, pooled)
        return self.transformer(
            target, reference, text, cos.to(target.device), sin.to(target.device), *modulation
        )


@torch.no_grad()
def initialize_network(network: KontextNetwork) -> None:
    """Xavier for linears; zero for the modulation, so that residual branches start closed (adaLN-Zero, Peebles & Xie
    2023)."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for linear in modulation_linears(network.modulation):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(network.transformer.final_layer.linear.weight)
    t5 = network.config.text_encoder_2
    nn.init.normal_(network.text_encoder_2.shared.weight, std=1.0)
    for name, parameter in network.text_encoder_2.named_parameters():
        if name.endswith(
            "SelfAttention.q.weight"
        ):  # T5 scales q by its initialization instead of in the attention
            nn.init.normal_(parameter, std=1 / math.sqrt(t5.hidden_size * t5.head_dim))


def modulation_linears(modulation: Modulation) -> list[nn.Linear]:
    return [
        module
        for name, module in modulation.named_modules()
        if isinstance(module, nn.Linear) and (name.endswith(".lin") or "adaLN" in name)
    ]


class Prompts:
    """Both tokenizers of the embedded model, called with a list of prompts."""

    def __init__(self, folder: Path, config: KontextConfig) -> None:
        from transformers import AutoTokenizer

        self.clip = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.t5 = AutoTokenizer.from_pretrained(folder / "tokenizer_2")
        self.lengths = config.text_encoder.max_length, config.text_encoder_2.max_length

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP ids and T5 ids. CLIP's are cut after the longest prompt: its attention is causal, so padding has no
        effect."""
        clip, t5 = (
            tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            for tokenizer, length in zip((self.clip, self.t5), self.lengths, strict=True)
        )
        end = int(clip.input_ids.argmax(dim=-1).max()) + 1
        return clip.input_ids[:, :end], t5.input_ids
