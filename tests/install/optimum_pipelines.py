"""Runs where the extra `optimum` is installed: `python optimum_pipelines.py CHECKPOINT PICTURE LIBRARY FOLDER…`.

Prints as JSON how close each folder's pictures are to diffusers', in decibels.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from PIL import Image

SIDE = 128
PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")


def open_pipelines(library: str, folder: str) -> tuple[Any, Any]:
    """Ours, and the library's own from a prompt."""
    if library == "onnxruntime":
        from optimum.onnxruntime import ORTFluxPipeline

        from kontext.integrations.optimum import ORTFluxKontextPipeline

        return ORTFluxKontextPipeline.from_pretrained(folder), ORTFluxPipeline.from_pretrained(folder)
    from optimum.intel import OVFluxPipeline

    from kontext.integrations.optimum_intel import OVFluxKontextPipeline

    exact = {"from_onnx": True, "ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    return (
        OVFluxKontextPipeline.from_pretrained(folder, **exact),
        OVFluxPipeline.from_pretrained(folder, **exact),
    )


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt="turn the purple triangle pink",
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=4,
        guidance_scale=2.5,
        output_type="np",
        **options,
    ).images


def decibels(picture: np.ndarray, reference: np.ndarray) -> float:
    assert picture.shape == reference.shape
    return float(-10 * np.log10(max(np.mean((picture - reference) ** 2), 1e-15)))


def main() -> None:
    warnings.simplefilter("ignore")
    checkpoint, picture, library, *folders = sys.argv[1:]
    edits = FluxKontextPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    draws = FluxPipeline(**{name: getattr(edits, name) for name in PARTS})
    reference = Image.open(picture).convert("RGB").resize((SIDE, SIDE))
    size = {"height": SIDE, "width": SIDE, "max_sequence_length": 32}
    edit = {**size, "image": reference, "max_area": SIDE**2, "_auto_resize": False}
    wide = {**edit, "width": SIDE + 32, "num_images_per_prompt": 2}
    longer = {**edit, "max_sequence_length": 48}
    found = {}
    for folder in folders:
        ours, theirs = open_pipelines(library, folder)
        cases = [(edits, ours, edit), (edits, ours, wide), (draws, theirs, size), (edits, ours, longer)]
        found[folder] = [
            decibels(draw(there, **options), draw(here, **options)) for here, there, options in cases
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
