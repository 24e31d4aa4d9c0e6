"""Packing, positions and RoPE tables against diffusers."""

from __future__ import annotations

import numpy as np
import pytest

from kontext.runtime.tokens import pack, positions, rope_tables, unpack


def test_unpack_inverts_pack() -> None:
    latents = np.random.default_rng(0).normal(size=(2, 16, 6, 10)).astype(np.float32)
    tokens = pack(latents)
    assert tokens.shape == (2, 15, 64)
    assert np.array_equal(unpack(tokens, 6, 10), latents)


def test_pack_is_that_of_diffusers() -> None:
    torch = pytest.importorskip("torch")
    flux = pytest.importorskip("diffusers").FluxKontextPipeline
    latents = np.random.default_rng(0).normal(size=(2, 16, 6, 10)).astype(np.float32)
    expected = flux._pack_latents(torch.from_numpy(latents), 2, 16, 6, 10).numpy()
    assert np.array_equal(pack(latents), expected)


def test_positions_and_tables_are_those_of_diffusers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    ids = positions(5, [(3, 4), (2, 6), (1, 2)])
    assert ids[:5].sum() == 0
    assert ids[5 + 12].tolist() == [1, 0, 0]
    assert ids[-1].tolist() == [2, 0, 1]
    cos, sin = rope_tables(ids, (8, 12, 12), 10_000.0)
    expected_cos, expected_sin = FluxPosEmbed(10_000, [8, 12, 12])(torch.from_numpy(ids).float())
    assert np.abs(cos - expected_cos[:, ::2].numpy()).max() < 1e-6
    assert np.abs(sin - expected_sin[:, ::2].numpy()).max() < 1e-6
