"""The embedded model's network: packing of latents."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.runtime import tokens  # noqa: E402
from kontext.tiny.network import pack  # noqa: E402


def test_packing_is_that_of_the_runtime() -> None:
    latents = torch.randn(2, 16, 4, 6)
    assert np.array_equal(pack(latents).numpy(), tokens.pack(latents.numpy()))
