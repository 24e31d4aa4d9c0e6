"""Edits a picture with stable-diffusion.cpp: python stable_diffusion_cpp_reader.py FOLDER MODEL[=TYPE]…, in an
environment with stable-diffusion-cpp-python.

FOLDER has clip_l.safetensors and taef1.safetensors. Beside each MODEL a PNG is written, MODEL.TYPE.png; the library
converts its matrices to TYPE where one is given.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from PIL import Image


def main() -> None:
    folder, models = Path(sys.argv[1]), sys.argv[2:]
    library: Any = importlib.import_module("stable_diffusion_cpp")
    for each in models:
        path, _, kind = each.partition("=")
        model = library.StableDiffusion(
            diffusion_model_path=path,
            clip_l_path=str(folder / "clip_l.safetensors"),
            taesd_path=str(folder / "taef1.safetensors"),
            tensor_type_rules=f"model.diffusion_model={kind}" if kind else "",
            n_threads=2,
            verbose=True,
        )
        (picture,) = model.generate_image(
            prompt="make it blue",
            ref_images=[Image.new("RGB", (64, 64), "red")],
            sample_steps=2,
            sample_method="euler",
            cfg_scale=1.0,
            width=64,
            height=64,
            seed=7,
        )
        picture.convert("RGB").save(f"{path}.{kind}.png")


main()
