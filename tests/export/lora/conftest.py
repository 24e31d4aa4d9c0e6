"""A bundle with slots for LoRAs, and what an export with the LoRA fused gives in its place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Untraced = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def slots_bundle(shared_folder: Path, tiny_checkpoint: Path, tiny_bundle: Path, untraced: Untraced) -> Path:
    """The fp32 export of `tiny_checkpoint` with slots of rank 64. Do not change it: copy it."""
    from ...conftest import once

    def make(folder: Path) -> None:
        from kontext.export.cli.main import main

        with untraced(tiny_bundle):
            words = [tiny_checkpoint, "-o", folder, "--fp32", "--lora-slots", 64, "--quiet"]
            assert main([str(word) for word in words]) == 0

    return once(shared_folder / "bundle-slots", make)


def edited(bundle: Path, *loras: tuple[Path, float], backend: str = "onnxruntime") -> np.ndarray:
    """A picture [h, w, 3] of an edit with LoRAs that were made ready."""
    from kontext.runtime import Pipeline

    pipeline = Pipeline.load(bundle, device="cpu", backend=backend)
    pipeline.load_loras(list(loras))
    reference = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    return np.asarray(pipeline.edit(reference, "make the circle red", steps=3, seed=3))
