"""The autoencoder against diffusers' AutoencoderKL with the same weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKL  # noqa: E402

from kontext.model.autoencoder import Autoencoder  # noqa: E402
from kontext.model.config import AutoencoderConfig  # noqa: E402
from kontext.model.diffusers_format import half_sources  # noqa: E402

CONFIGS = [
    AutoencoderConfig((8, 8, 16, 16), layers_per_block=1, norm_groups=4),
    AutoencoderConfig(
        (16, 32, 64, 64), layers_per_block=2, norm_groups=8, scaling_factor=1.3, shift_factor=-0.2
    ),
]


@pytest.fixture(params=CONFIGS, ids=["1 layer", "2 layers"], scope="module")
def pair(request):
    config = request.param
    torch.manual_seed(5)
    theirs = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
    ).eval()
    state = theirs.state_dict()
    ours = Autoencoder(config).eval()
    used: set[str] = set()
    for half in ("encoder", "decoder"):
        sources = half_sources(half, config)
        module = getattr(ours, half)
        module.load_state_dict({key: source.assemble(state.__getitem__) for key, source in sources.items()})
        used.update(part for source in sources.values() for part in source.parts)
    assert used == set(state)
    return theirs, ours


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (2, 40, 96)])
def test_encoder_and_decoder_are_diffusers(pair, batch, height, width) -> None:
    theirs, ours = pair
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = ours.config
    with torch.no_grad():
        mean = theirs.encode(image).latent_dist.mode()
        latents = ours.encoder(image)
        expected = (mean - config.shift_factor) * config.scaling_factor
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.decoder(latents), theirs.decode(mean).sample, atol=1e-4, rtol=0)
    assert latents.shape == (batch, 16, height // 8, width // 8)


def test_moments_are_the_posteriors(pair) -> None:
    theirs, ours = pair
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        mean, log_variance = ours.encoder.moments(image)
        posterior = theirs.encode(image).latent_dist
    torch.testing.assert_close(mean, posterior.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(log_variance.clamp(-30, 20), posterior.logvar, atol=1e-4, rtol=0)
