"""Stages 1 and 5: the autoencoder, and at the end its decoder alone, on scenes drawn on the fly.

The flow is trained on the encoder's latents, so stage 5 must not change the encoder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..decibels import decibels
from ..model.autoencoder import AttentionBlock, Autoencoder, ResnetBlock
from ..model.config import AutoencoderConfig
from . import run_state
from .scenes import render
from .variety import varied_edit

BATCH = 5
KL_WEIGHT = 1e-4
LEARNING_RATE = 2e-3
DECODER_RATE = 1e-3
LATENT_NOISE = 0.1
"""Stage 5 adds noise to the latents, of at most this standard deviation (the latents' is 1): the flow's latents differ
slightly from the encoder's."""
SHARES = {"effect": 0.35, "style": 0.25, "character": 0.2, "text": 0.08, "move": 0.07, "background": 0.05}
"""How often each kind of edit is drawn; patterns and inverted colours, the hardest to reconstruct, most often."""


@torch.no_grad()
def initialize_autoencoder(model: Autoencoder) -> None:
    """Residual branches start at zero and linear maps preserve their input's scale (as in Fixup, Zhang et al. 2019).

    The network is nearly linear at first and learns the pictures' coarse content within a few dozen steps; the latents
    start almost without noise.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(cast(Tensor, module.bias))
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(module.proj_out.weight)
    nn.init.constant_(cast(Tensor, model.encoder.conv_out.bias)[model.config.latent_channels :], -5.0)


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] pictures → float32 [batch, 3, H, W] in [-1, 1], channels first in memory.

    The memory order matters: with channels last, which convolutions preserve, the CPU's group_norm_backward in bf16 is
    scalar code and takes more than half of a training step (63 ms per picture instead of 47, one core with AMX).
    """
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return pixels.float().contiguous() / 127.5 - 1


def draw_pictures(rng: np.random.Generator, count: int) -> Tensor:
    """`count` pictures: sources and targets of random edits, their kinds distributed as in `SHARES`."""
    pictures: list[np.ndarray] = []
    while len(pictures) < count:
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        edit = varied_edit(rng, kind)
        pictures += [render(scene) for scene in (edit.source, edit.target) if scene is not None]
    return to_tensor(pictures[:count])


def edges(x: Tensor) -> Tensor:
    return torch.cat(((x[..., 1:, :-1] - x[..., :-1, :-1]), (x[..., :-1, 1:] - x[..., :-1, :-1])), dim=1)


def reconstruction_loss(output: Tensor, image: Tensor) -> Tensor:
    """L1 and L2 of the picture, and L1 of its gradients, which keeps flat colours flat and outlines sharp."""
    return F.l1_loss(output, image) + 2 * F.mse_loss(output, image) + F.l1_loss(edges(output), edges(image))


def batch_psnr(output: Tensor, image: Tensor) -> float:
    """PSNR of a batch in [-1, 1], in dB."""
    return decibels(1, float((output.detach().clamp(-1, 1) - image).square().mean() / 4))


def train_autoencoder(config: AutoencoderConfig, run: Path, minutes: float, device: str = "cpu") -> None:
    """Trains for `minutes` in all, earlier runs included; the state is `run`/autoencoder.safetensors."""
    path = run / "autoencoder.safetensors"
    torch.manual_seed(0)
    model = Autoencoder(config)
    initialize_autoencoder(model)
    model.to(device)
    optimizers = {
        "adam": torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0)
    }
    session = run_state.TrainingSession(path, model, optimizers, 0.998)
    rng = np.random.default_rng(session.data_seed(1))
    with session.training(minutes) as budget:
        while budget.fraction < 1:
            rate = LEARNING_RATE * min(1, (session.step + 1) / 100) * (1 - budget.fraction) ** 0.7
            session.set_learning_rate(rate)
            image = draw_pictures(rng, BATCH).to(device)
            with torch.autocast(device, torch.bfloat16):
                mean, log_variance = (t.float() for t in model.encoder.moments(image))
                log_variance = log_variance.clamp(-12, 4)
                sample = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
                shift, scale = config.shift_factor, config.scaling_factor
                output = model.decoder((sample - shift) * scale).float()
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            session.update(reconstruction_loss(output, image) + KL_WEIGHT * kl)
            if session.step % 20 == 0:
                session.show(psnr=f"{batch_psnr(output, image):.1f}", kl=f"{kl:.2f}")


def train_decoder(autoencoder: Autoencoder, run: Path, minutes: float, device: str = "cpu") -> None:
    """Trains the decoder for `minutes` in all on the frozen encoder's latents with noise of up to `LATENT_NOISE`.

    Args:
        autoencoder: of stage 1, with the configuration that normalizes its latents; not changed.
        run: folder of the state, decoder.safetensors.
    """
    torch.manual_seed(0)
    encoder = autoencoder.encoder.to(device)
    decoder = copy.deepcopy(autoencoder.decoder).to(device).requires_grad_(True)
    optimizers = {
        "adam": torch.optim.AdamW(decoder.parameters(), DECODER_RATE, betas=(0.9, 0.95), weight_decay=0)
    }
    session = run_state.TrainingSession(run / "decoder.safetensors", decoder, optimizers, 0.998)
    rng = np.random.default_rng(session.data_seed(4))
    with session.training(minutes) as budget:
        while budget.fraction < 1:
            session.set_learning_rate(DECODER_RATE * min(1, (session.step + 1) / 50) * (1 - budget.fraction))
            image = draw_pictures(rng, BATCH).to(device)
            with torch.autocast(device, torch.bfloat16):
                with torch.no_grad():
                    latents = encoder(image).float()
                    spread = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1, device=device)
                output = decoder(latents + spread * torch.randn_like(latents)).float()
            session.update(reconstruction_loss(output, image))
            if session.step % 20 == 0:
                session.show(psnr=f"{batch_psnr(output, image):.1f}")
