"""Tiled decoding: exact for a decoder whose pixels depend on their own latents only."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.runtime.backends.torch.decode import decode_tiled  # noqa: E402


def test_tiles_of_a_decoder_that_sees_only_its_pixels() -> None:
    """For a decoder without normalizations, tiles are exact; their weights add up to one everywhere."""
    latents = torch.randn(1, 16, 40, 23, generator=torch.Generator().manual_seed(2))

    def decode(piece: torch.Tensor) -> torch.Tensor:
        return piece[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    for tile, overlap in ((16, 4), (24, 8), (64, 16)):
        tiled = decode_tiled(decode, latents, 8, tile, overlap)
        assert torch.allclose(tiled, decode(latents), atol=1e-5)
