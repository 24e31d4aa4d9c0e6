"""The colours of previews: fitted to the embedded model's autoencoder, and FLUX.1's published ones for its shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from kontext.decibels import psnr  # noqa: E402
from kontext.export.bundle import preview_colours  # noqa: E402
from kontext.export.cli.source_flags import EMBEDDED  # noqa: E402
from kontext.model.build_network import build_network  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.config import AutoencoderConfig  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    if not (EMBEDDED / "model_index.json").exists():
        pytest.skip("the embedded model is not part of this checkout")
    return Checkpoint.open(EMBEDDED)


def network(checkpoint: Checkpoint, name: str) -> torch.nn.Module:
    weights = checkpoint.networks[name]
    with torch.device("meta"):
        module = build_network(name, checkpoint.config).eval()
    module.load_state_dict({each: weights.read(each).float() for each in weights.shapes}, assign=True)
    return module


def held_out() -> list[Image.Image]:
    """Photographs, and what is drawn from another seed."""
    data = pytest.importorskip("skimage.data")
    photographs = [Image.fromarray(each).resize((128, 128)) for each in (data.astronaut(), data.chelsea())]
    return [
        *photographs,
        *(preview_colours.draw_picture(np.random.default_rng(seed), 128) for seed in (1, 2)),
    ]


def test_the_map_is_much_nearer_to_the_decoder_than_one_colour(checkpoint: Checkpoint) -> None:
    fitted = preview_colours.preview_colours(checkpoint)
    assert fitted == preview_colours.preview_colours(checkpoint)
    factors, bias = (torch.tensor(fitted[name]) for name in ("factors", "bias"))
    encoder, decoder = network(checkpoint, "vae_encoder"), network(checkpoint, "vae_decoder")
    gains = []
    for picture in held_out():
        pixels = torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
        with torch.inference_mode():
            latents = encoder(pixels)
            decoded = torch.nn.functional.avg_pool2d(decoder(latents).clamp(-1, 1), 8)[0]
        preview = torch.nn.functional.linear(latents[0].movedim(0, -1), factors.T, bias).movedim(-1, 0)
        constant = decoded.mean((1, 2), keepdim=True).expand_as(decoded)
        exact = decoded.numpy()
        gains.append(psnr(preview.clamp(-1, 1).numpy(), exact) - psnr(constant.numpy(), exact))
    assert min(gains) > 3
    assert np.mean(gains) > 5


def test_flux_has_the_published_colours(checkpoint: Checkpoint) -> None:
    """No weight is read."""
    config = replace(checkpoint.config, autoencoder=AutoencoderConfig())
    found = preview_colours.preview_colours(replace(checkpoint, config=config, networks={}))
    assert np.array(found["factors"]).shape == (16, 3)
    assert found["factors"][0] == [-0.0346, 0.0244, 0.0681]
    assert found["bias"] == [-0.0329, -0.0718, -0.0851]
    assert not preview_colours.is_flux(replace(AutoencoderConfig(), shift_factor=0.0))
