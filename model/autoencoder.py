"""FLUX's convolutional autoencoder: pictures [batch, 3, H, W] in [-1, 1] to latents [batch, 16, H/8, W/8] and back.

The encoder returns the posterior's mean, so edits are deterministic. Parameters are named as in the reference release.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AutoencoderConfig

NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head attention over all positions, with linears in place of the reference's 1x1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # one head: [batch, 1, positions, channels]
        h = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
        return x + self.proj_out(h[:, 0]).transpose(1, 2).reshape(batch, channels, height, width)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def double_size(x: Tensor) -> Tensor:
    """[batch, channels, height, width], every pixel four times: [batch, channels, 2 height, 2 width]."""
    if x.dtype != torch.bfloat16:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    # In a graph this is Expand and Reshape: ONNX Runtime's CUDA provider has no Resize for bf16.
    batch, channels, height, width = x.shape
    pixels = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return pixels.reshape(batch, channels, 2 * height, 2 * width)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(double_size(x))


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks at one resolution, then the resampling to the next resolution, if any."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, groups: int, resample: str | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels, groups) for i in range(blocks)
        )
        if resample == "down":
            self.downsample = Downsample(out_channels)
        elif resample == "up":
            self.upsample = Upsample(out_channels)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.resample == "down":
            return self.downsample(x)
        return self.upsample(x) if self.resample == "up" else x


class Encoder(nn.Module):
    """Picture → normalized mean latents, (mean - shift) * scale."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, groups = config.block_channels, config.norm_groups
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                channels[max(i - 1, 0)],
                channels[i],
                config.layers_per_block,
                groups,
                "down" if i < last else None,
            )
            for i in range(len(channels))
        )
        self.mid = Middle(channels[-1], groups)
        self.norm_out = nn.GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def posterior(self, image: Tensor) -> Tensor:
        """Means, then log-variances, of the latents as they are: [batch, 2 * latent_channels, H/8, W/8]."""
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, each [batch, latent_channels, H/8, W/8], for training."""
        mean, log_variance = self.posterior(image).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, image: Tensor) -> Tensor:
        """image [batch, 3, H, W] in [-1, 1], H and W multiples of the downscale."""
        mean, _ = self.moments(image)
        return (mean - self.config.shift_factor) * self.config.scaling_factor


class Decoder(nn.Module):
    """Normalized latents → picture, nominally in [-1, 1], not clamped."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, groups = config.block_channels, config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1], groups)
        # The reference numbers levels from the full resolution: up[last] runs first.
        self.up = nn.ModuleList(
            Level(
                channels[min(i + 1, len(channels) - 1)],
                channels[i],
                config.layers_per_block + 1,
                groups,
                "up" if i > 0 else None,
            )
            for i in range(len(channels))
        )
        self.norm_out = nn.GroupNorm(groups, channels[0], NORM_EPS)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [batch, latent_channels, h, w], as `Encoder` returns them."""
        return self.decode(latents / self.config.scaling_factor + self.config.shift_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [batch, latent_channels, h, w] as they are, not normalized."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Encoder and decoder, as in one checkpoint."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
