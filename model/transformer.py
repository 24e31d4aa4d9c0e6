"""FLUX.1 Kontext's transformer: `Modulation` (timestep, guidance, pooled text) and `Transformer` (everything else).

They share no weights, so a sampler can run the first once for all steps and drop it before the second starts.
Parameters are named as in the reference release (black-forest-labs/flux), so its checkpoints load unchanged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TIME_CHANNELS, TransformerConfig
from .rope import rotate


def sinusoid(values: Tensor) -> Tensor:
    """Embeds `values` [rows], fp32, as [rows, 256]: cosines, then sines, of 1000 * value * 10000^(-j/128).

    Always in fp32: half precision here would change the denoiser's output by 0.09.
    """
    half = TIME_CHANNELS // 2
    frequency = torch.exp(
        torch.arange(half, dtype=torch.float32, device=values.device) * (-math.log(10_000) / half)
    )
    angles = (values.float() * 1000)[:, None] * frequency
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Embedder(nn.Module):
    """Two linears with SiLU between them."""

    def __init__(self, in_size: int, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_size, hidden_size)
        self.out_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x.to(self.in_layer.bias.dtype))))


class ModulationLinear(nn.Module):
    """The linear from the conditioning vector to shifts, scales and gates."""

    def __init__(self, hidden_size: int, parts: int) -> None:
        super().__init__()
        self.lin = nn.Linear(hidden_size, parts * hidden_size)

    def forward(self, conditioning: Tensor) -> Tensor:
        return self.lin(conditioning)


class DoubleModulation(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.img_mod = ModulationLinear(hidden_size, 6)
        self.txt_mod = ModulationLinear(hidden_size, 6)

    def forward(self, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        return self.img_mod(conditioning), self.txt_mod(conditioning)


class SingleModulation(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.modulation = ModulationLinear(hidden_size, 3)

    def forward(self, conditioning: Tensor) -> Tensor:
        return self.modulation(conditioning)


class FinalModulation(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))


class Modulation(nn.Module):
    """All shifts, scales and gates of all blocks, from the conditioning alone.

    It has 27 % of FLUX's parameters and does not depend on the image, so one call serves all steps of an edit.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.time_in = Embedder(TIME_CHANNELS, hidden)
        self.guidance_in = Embedder(TIME_CHANNELS, hidden) if config.guidance_embed else None
        self.vector_in = Embedder(config.pooled_dim, hidden)
        self.double_blocks = nn.ModuleList(DoubleModulation(hidden) for _ in range(config.num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleModulation(hidden) for _ in range(config.num_single_blocks))
        self.final_layer = FinalModulation(hidden)

    def forward(self, timestep: Tensor, guidance: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Modulations of `rows` (step, prompt) pairs.

        Args:
            timestep: fp32 [rows], the flow's time in [0, 1] (1 is noise).
            guidance: fp32 [rows], the guidance scale; ignored by models without its embedding.
            pooled: [rows, pooled_dim], CLIP's pooled text.

        Returns:
            double [rows, num_double_blocks, 2 (image, text), 6, hidden], in the order shift, scale, gate of
            attention, then of the MLP; single [rows, num_single_blocks, 3 (shift, scale, gate), hidden];
            final [rows, 2 (shift, scale), hidden].
        """
        rows, hidden = timestep.shape[0], self.config.hidden_size
        vector = self.time_in(sinusoid(timestep)) + self.vector_in(pooled)
        if self.guidance_in is not None:
            vector = vector + self.guidance_in(sinusoid(guidance))
        active = F.silu(vector)
        double = [part for block in self.double_blocks for part in block(active)]
        single = [block(active) for block in self.single_blocks]
        final = self.final_layer.adaLN_modulation(vector)
        return (
            torch.stack(double, dim=1).view(rows, self.config.num_double_blocks, 2, 6, hidden),
            torch.stack(single, dim=1).view(rows, self.config.num_single_blocks, 3, hidden),
            final.view(rows, 2, hidden),
        )


class RMSNorm(nn.Module):
    """RMS normalization of one head's channels; `scale` is the reference's name for the weight."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, 1e-6)


class QKNorm(nn.Module):
    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)


def split_heads(qkv: Tensor, num_heads: int, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    """[batch, tokens, 3 * hidden] → q, k (normalized), v, each [batch, heads, tokens, head_dim]."""
    width = qkv.shape[-1] // 3
    heads = (num_heads, width // num_heads)
    q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in qkv.split(width, dim=-1))
    return norm.query_norm(q), norm.key_norm(k), v


class JointAttention(nn.Module):
    """Full attention; a module, so that calibration can hook its operands."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All of [batch, heads, tokens, head_dim]; returns [batch, tokens, hidden]."""
        if q.requires_grad and q.device.type == "cpu":
            # Without the fused operator, whose backward pass is slow on a CPU, a training step of the embedded model
            # takes 0.91 s of one core instead of 1.31 s.
            weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
            return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(-2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


FP16_MAX = 65504.0
"""The largest finite number in fp16."""


def within_fp16(x: Tensor) -> Tensor:
    """A residual stream, clipped to ±65504 if it is in fp16, so that infinity becomes 65504; otherwise unchanged.

    FLUX's weights leave the range of fp16 in the text stream. Clipped where diffusers clips: the text stream after each
    double block, both streams after each single block (transformer_flux.py).
    """
    return x.clip(-FP16_MAX, FP16_MAX) if x.dtype == torch.float16 else x


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then (1 + scale) * x + shift; x [batch, tokens, hidden], the others [batch,
    hidden]."""
    normalized = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return normalized * (1 + scale[:, None]) + shift[:, None]


class ModulationOut(NamedTuple):
    """What `Modulation` computes for one attention or MLP, each [batch, hidden]; the reference release's name."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def stream_modulation(modulation: Tensor) -> tuple[ModulationOut, ModulationOut]:
    """Of one stream of a double block: [batch, 6, hidden] → that of attention, that of the MLP."""
    parts = modulation.unbind(1)
    return ModulationOut(*parts[:3]), ModulationOut(*parts[3:])


class StreamAttention(nn.Module):
    """The attention weights of one stream, image or text, in a double block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)


def feed_forward(config: TransformerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.mlp_size),
        nn.GELU(approximate="tanh"),
        nn.Linear(config.mlp_size, config.hidden_size),
    )


class DoubleBlock(nn.Module):
    """Text and image have separate weights and a joint attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.img_attn = StreamAttention(config)
        self.txt_attn = StreamAttention(config)
        self.img_mlp = feed_forward(config)
        self.txt_mlp = feed_forward(config)
        self.attention = JointAttention()

    def forward(
        self, image: Tensor, text: Tensor, cos: Tensor, sin: Tensor, modulation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """image, text: [batch, tokens, hidden]; modulation [batch, 2 (image, text), 6, hidden]."""
        (img_attn, img_mlp), (txt_attn, txt_mlp) = (stream_modulation(modulation[:, i]) for i in (0, 1))
        image_qkv = split_heads(
            self.img_attn.qkv(modulate(image, img_attn.shift, img_attn.scale)),
            self.num_heads,
            self.img_attn.norm,
        )
        text_qkv = split_heads(
            self.txt_attn.qkv(modulate(text, txt_attn.shift, txt_attn.scale)),
            self.num_heads,
            self.txt_attn.norm,
        )
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(text_qkv, image_qkv, strict=True))
        joint = self.attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        # Two slices, because a split into varying sizes is an ONNX sequence, which engines do not support.
        text_attended, image_attended = joint[:, : text.shape[1]], joint[:, text.shape[1] :]

        image = image + img_attn.gate[:, None] * self.img_attn.proj(image_attended)
        image = image + img_mlp.gate[:, None] * self.img_mlp(modulate(image, img_mlp.shift, img_mlp.scale))
        text = text + txt_attn.gate[:, None] * self.txt_attn.proj(text_attended)
        text = text + txt_mlp.gate[:, None] * self.txt_mlp(modulate(text, txt_mlp.shift, txt_mlp.scale))
        return image, within_fp16(text)


class SingleBlock(nn.Module):
    """One stream of text and image; attention and MLP run in parallel between two fused linears."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.split = (3 * config.hidden_size, config.mlp_size)
        self.linear1 = nn.Linear(config.hidden_size, sum(self.split))
        self.linear2 = nn.Linear(config.hidden_size + config.mlp_size, config.hidden_size)
        self.norm = QKNorm(config.head_dim)
        self.attention = JointAttention()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, modulation: Tensor) -> Tensor:
        """x: [batch, tokens, hidden]; modulation [batch, 3, hidden]."""
        shift, scale, gate = modulation.unbind(1)
        qkv, mlp = self.linear1(modulate(x, shift, scale)).split(self.split, dim=-1)
        q, k, v = split_heads(qkv, self.num_heads, self.norm)
        attended = self.attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        joined = torch.cat((attended, F.gelu(mlp, approximate="tanh")), dim=-1)
        return within_fp16(x + gate[:, None] * self.linear2(joined))


class FinalLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.in_channels)


class Transformer(nn.Module):
    """The denoiser without its modulation: packed latents and text in, velocity of the target out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if sum(config.axes_dim) != config.head_dim:
            raise ValueError(f"axes_dim {config.axes_dim} must add up to head_dim {config.head_dim}")
        self.config = config
        self.img_in = nn.Linear(config.in_channels, config.hidden_size)
        self.txt_in = nn.Linear(config.text_dim, config.hidden_size)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_blocks))
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        target: Tensor,
        reference: Tensor,
        text: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        double_modulation: Tensor,
        single_modulation: Tensor,
        final_modulation: Tensor,
    ) -> Tensor:
        """Velocity [batch, target_tokens, in_channels] at `target`.

        Args:
            target: [batch, target_tokens, in_channels], packed noisy latents.
            reference: [batch, reference_tokens, in_channels], packed latents of all references; may have no
                tokens.
            text: [batch, text_tokens, text_dim], the sequence encoder's output.
            rope_cos, rope_sin: fp32 [text + target + reference tokens, head_dim / 2], in that order.
            double_modulation, single_modulation, final_modulation: what `Modulation` returned, one row per
                batch row.
        """
        x = self.joint_stream(
            torch.cat((target, reference), dim=1),
            text,
            rope_cos,
            rope_sin,
            double_modulation,
            single_modulation,
        )
        start = text.shape[1]
        return self.velocity(x[:, start : start + target.shape[1]], final_modulation)

    def joint_stream(
        self,
        image: Tensor,
        text: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        double_modulation: Tensor,
        single_modulation: Tensor,
    ) -> Tensor:
        """All blocks: image [batch, image_tokens, in_channels] and text [batch, text_tokens, text_dim] →
        [batch, text_tokens + image_tokens, hidden]; the others as in `forward`."""
        image = self.img_in(image)
        text = self.txt_in(text)
        for index, block in enumerate(self.double_blocks):
            image, text = block(image, text, rope_cos, rope_sin, double_modulation[:, index])
        x = torch.cat((text, image), dim=1)
        for index, block in enumerate(self.single_blocks):
            x = block(x, rope_cos, rope_sin, single_modulation[:, index])
        return x

    def velocity(self, x: Tensor, final_modulation: Tensor) -> Tensor:
        """The last layer: some image tokens of `joint_stream` [batch, tokens, hidden] → their velocity [batch, tokens,
        in_channels]."""
        shift, scale = final_modulation.unbind(1)
        return self.final_layer.linear(modulate(x, shift, scale))
