"""Edits one picture, with a bar that shows the steps.

Run from the root of the repository, after `kontext-export --fp8 -o my-bundle`:

    python examples/edit.py
    python examples/edit.py my-bundle -i examples/pictures/text.png -p "change the word BUS to HI" -o sign.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import Pipeline

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description="Edits one picture.")
    parser.add_argument("bundle", nargs="?", default="my-bundle")
    parser.add_argument("-i", "--image", type=Path, default=PICTURES / "recolour.png")
    parser.add_argument("-p", "--prompt", default="turn the purple triangle pink")
    parser.add_argument("-o", "--output", type=Path, default="edited.png")
    parser.add_argument("--steps", type=int, help="(the bundle's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pipe = Pipeline.load(options.bundle, device="cpu")
    with Image.open(options.image) as picture:
        edited = pipe.edit(picture, options.prompt, steps=options.steps, seed=options.seed, progress=True)
    edited.save(options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    try:
        main()
    except KontextError as error:
        raise SystemExit(f"error: {error}") from None
