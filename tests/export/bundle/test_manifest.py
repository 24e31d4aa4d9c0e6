"""The manifest: how references are placed by default."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch")

from kontext.export.bundle.manifest import default_reference_method
from kontext.model.config import TransformerConfig


def test_the_reference_method_follows_the_models_shape() -> None:
    """ComfyUI's default, offset, for the released weights; the embedded and other models learned from index."""
    flux = TransformerConfig()
    assert (flux.hidden_size, flux.num_double_blocks, flux.num_single_blocks) == (3072, 19, 38)
    assert default_reference_method(flux) == "offset"
    for change in ({"num_double_blocks": 8}, {"num_single_blocks": 10}, {"hidden_size": 192}):
        assert default_reference_method(dataclasses.replace(flux, **change)) == "index"
