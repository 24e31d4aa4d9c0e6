"""The two text encoders: CLIP's for the pooled vector, T5's for the sequence.

Parameters are named as in transformers, so `text_encoder/` and `text_encoder_2/` of a checkpoint load unchanged.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ClipConfig, T5Config


class ClipAttention(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_heads:
            raise ValueError(
                f"CLIP's {config.num_heads} heads do not divide its {config.hidden_size} channels"
            )
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            proj(x).view(batch, tokens, self.num_heads, -1).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(attended.transpose(1, 2).flatten(-2))


class ClipMlp(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class ClipLayer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = ClipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = ClipMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipEmbeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class ClipLayers(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.num_layers))


class ClipTextModel(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.encoder = ClipLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class ClipTextEncoder(nn.Module):
    """CLIP's text encoder; returns its output at the end-of-text token."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        if config.activation not in ("quick_gelu", "gelu"):
            raise ValueError(f"CLIP activation {config.activation!r} is unknown, expected quick_gelu or gelu")
        self.config = config
        self.text_model = ClipTextModel(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids int64 [batch, tokens], each row with an end-of-text token → pooled [batch, hidden_size]."""
        return self.pool(self.hidden_states(input_ids), input_ids)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """[batch, tokens] → [batch, tokens, hidden_size], normalized."""
        x = self.text_model.embeddings(input_ids)
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        return self.text_model.final_layer_norm(x)

    def pool(self, x: Tensor, input_ids: Tensor) -> Tensor:
        """`hidden_states` at each row's end-of-text token: [batch, hidden_size]."""
        # eos_id 2 is a mistake in old configurations; it means the highest id, which is CLIP's end-of-text token.
        scores = input_ids if self.config.eos_id == 2 else (input_ids == self.config.eos_id).to(torch.int32)
        end = scores.argmax(dim=-1)
        return x.gather(1, end[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]


class T5Norm(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.layer_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class T5SelfAttention(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.hidden_size, inner, bias=False)
        self.k = nn.Linear(config.hidden_size, inner, bias=False)
        self.v = nn.Linear(config.hidden_size, inner, bias=False)
        self.o = nn.Linear(inner, config.hidden_size, bias=False)
        if has_bias_table:
            self.relative_attention_bias = nn.Embedding(config.relative_buckets, config.num_heads)

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            proj(x).view(batch, tokens, self.num_heads, -1).transpose(1, 2)
            for proj in (self.q, self.k, self.v)
        )
        # T5 does not scale by 1/sqrt(head_dim); its initialization makes up for it.
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=position_bias, scale=1.0)
        return self.o(attended.transpose(1, 2).flatten(-2))


class T5AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.layer_norm = T5Norm(config)
        self.SelfAttention = T5SelfAttention(config, has_bias_table)

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), position_bias)


class T5Gated(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.wi_1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class T5FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.layer_norm = T5Norm(config)
        self.DenseReluDense = T5Gated(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class T5Block(nn.Module):
    def __init__(self, config: T5Config, has_bias_table: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5AttentionLayer(config, has_bias_table), T5FeedForwardLayer(config)])

    def forward(self, x: Tensor, position_bias: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, position_bias) if isinstance(layer, T5AttentionLayer) else layer(x)
        return x


class T5Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(T5Block(config, has_bias_table=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = T5Norm(config)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """T5's bidirectional bucket of every (query, key) distance, int64 [length, length] (Raffel et al. 2020).

    Half of the buckets are for keys after the query. In each half, the first half holds exact distances, the rest
    logarithmic ones.
    """
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    magnitude = distance.abs()
    logarithmic = exact + (
        torch.log(magnitude.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    ).to(torch.int64)
    bucket = torch.where(magnitude < exact, magnitude, logarithmic.clamp(max=half - 1))
    return bucket + (distance > 0).to(torch.int64) * half


class T5Encoder(nn.Module):
    """T5's encoder over a prompt padded to `max_length`, without attention mask."""

    buckets: Tensor

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        if not config.buckets_fit:
            raise ValueError(
                f"T5 has {config.relative_buckets} buckets for its distances, too few or too many"
            )
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = T5Stack(config)
        table = relative_buckets(config.max_length, config.relative_buckets, config.relative_max_distance)
        self.register_buffer("buckets", table, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids int64 [batch, max_length] → [batch, max_length, hidden_size]."""
        return self.encode(input_ids, self.buckets)

    def encode(self, input_ids: Tensor, buckets: Tensor) -> Tensor:
        """[batch, tokens] → [batch, tokens, hidden_size], with the buckets [tokens, tokens] of their distances."""
        x = self.shared(input_ids)
        bias_table = self.encoder.get_submodule("block.0.layer.0.SelfAttention.relative_attention_bias")
        bias = bias_table(buckets).permute(2, 0, 1)[None]  # [1, heads, tokens, tokens]
        for block in self.encoder.block:
            x = block(x, bias.to(x.dtype))
        return self.encoder.final_layer_norm(x)
