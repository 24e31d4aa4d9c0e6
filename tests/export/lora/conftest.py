"""Edits with LoRAs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image

Untraced = Callable[[Path], AbstractContextManager[None]]


def edited(bundle: Path, *loras: tuple[Path, float], backend: str = "onnxruntime") -> np.ndarray:
    """A picture [h, w, 3] of an edit with LoRAs that were made ready."""
    from kontext.runtime import Pipeline

    pipeline = Pipeline.load(bundle, device="cpu", backend=backend)
    pipeline.load_loras(list(loras))
    reference = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    return np.asarray(pipeline.edit(reference, "make the circle red", steps=3, seed=3))
