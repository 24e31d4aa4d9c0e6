"""The colours of previews: least squares between what the autoencoder's encoder makes of drawn pictures and these
pictures, reduced to the latents' size.

For an autoencoder of FLUX.1's shape the published colours are taken: encoding with it takes minutes on a processor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...model.build_network import build_network
from ...model.checkpoint import Checkpoint
from ...model.config import AutoencoderConfig
from ...runtime.manifest_ranges import RANGES

FLUX_FACTORS = (
    (-0.0346, 0.0244, 0.0681),
    (0.0034, 0.0210, 0.0687),
    (0.0275, -0.0668, -0.0433),
    (-0.0174, 0.0160, 0.0617),
    (0.0859, 0.0721, 0.0329),
    (0.0004, 0.0383, 0.0115),
    (0.0405, 0.0861, 0.0915),
    (-0.0236, -0.0185, -0.0259),
    (-0.0245, 0.0250, 0.1180),
    (0.1008, 0.0755, -0.0421),
    (-0.0515, 0.0201, 0.0011),
    (0.0428, -0.0012, -0.0036),
    (0.0817, 0.0765, 0.0749),
    (-0.1264, -0.0522, -0.1103),
    (-0.0280, -0.0881, -0.0499),
    (-0.1262, -0.0982, -0.0778),
)
FLUX_BIAS = (-0.0329, -0.0718, -0.0851)
"""Of FLUX.1's latents, scaled as ours are: `latent_rgb_factors` and `latent_rgb_factors_bias` of `Flux` in ComfyUI's
comfy/latent_formats.py."""

PICTURES, SIDE = 6, 16
"""How many pictures are drawn, of so many latents a side."""

DECIMALS = 3
"""Few, so that the last bits of a processor's arithmetic do not show in the manifest. 0.001 is an eighth of a level of
8-bit colour for each channel of a usual latent."""


def preview_colours(checkpoint: Checkpoint) -> dict[str, list[object]]:
    """The manifest's `preview` for a checkpoint.

    Raises KontextError if the encoder's weights cannot be read.
    """
    config = checkpoint.config.autoencoder
    factors, bias = (FLUX_FACTORS, FLUX_BIAS) if is_flux(config) else fit(checkpoint)
    return {"factors": [list(each) for each in factors], "bias": list(bias)}


def is_flux(config: AutoencoderConfig) -> bool:
    """Whether an autoencoder has FLUX.1's shape and scaling."""
    flux = AutoencoderConfig()
    names = ("block_channels", "layers_per_block", "latent_channels", "scaling_factor", "shift_factor")
    return all(getattr(config, name) == getattr(flux, name) for name in names)


def fit(checkpoint: Checkpoint) -> tuple[Sequence[Sequence[float]], Sequence[float]]:
    """Factors [channels, 3] and bias [3] of a checkpoint's own autoencoder; its encoder runs in fp32."""
    weights, config = checkpoint.networks["vae_encoder"], checkpoint.config
    with torch.device("meta"):
        encoder = build_network("vae_encoder", config).eval().requires_grad_(False)
    encoder.load_state_dict({name: weights.read(name).float() for name in weights.shapes}, assign=True)
    rng, downscale = np.random.default_rng(20261130), config.autoencoder.downscale
    rows, colours = [], []
    for _ in range(PICTURES):
        picture = draw_picture(rng, SIDE * downscale)
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            latents = encoder(torch.from_numpy(np.ascontiguousarray(pixels))).float().numpy()
        rows.append(latents[0].reshape(len(latents[0]), -1).T)
        reduced = np.asarray(picture.reduce(downscale), np.float64) / 127.5 - 1
        colours.append(reduced.reshape(-1, 3))
    inputs = np.concatenate(rows).astype(np.float64)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    solved = np.linalg.lstsq(inputs, np.concatenate(colours), rcond=1e-6)[0]
    solved = np.clip(solved, *RANGES["preview"]).round(DECIMALS) + 0.0  # no -0.0
    return solved[:-1].tolist(), solved[-1].tolist()


def draw_picture(rng: np.random.Generator, side: int) -> Image.Image:
    """A square RGB picture: a field of colours that change softly, and on it discs and rectangles of one colour."""
    soft: NDArray[np.uint8] = rng.integers(0, 256, (int(rng.integers(1, 6)), 4, 3), np.uint8)
    picture = Image.fromarray(soft).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for shape in (draw.ellipse, draw.rectangle) * 3:
        left, top = rng.integers(0, side, 2).tolist()
        width, height = rng.integers(side // 8, side // 2, 2).tolist()
        shape((left, top, left + width, top + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return picture
