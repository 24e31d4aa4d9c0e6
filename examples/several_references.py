"""Gives the model two references: the first is edited and sets the output's aspect, the second lends something.

Run from the root of the repository, after `kontext-export --fp8 -o my-bundle`:

    python examples/several_references.py
    python examples/several_references.py my-bundle photo.png style.png -p "the first in the style of the second"

The embedded model learned from single references only: with it this shows how the call works, not a good picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import Pipeline

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description="Edits with several references.")
    parser.add_argument("bundle", nargs="?", default="my-bundle")
    parser.add_argument(
        "references", nargs="*", type=Path, default=[PICTURES / "character.png", PICTURES / "style.png"]
    )
    parser.add_argument("-p", "--prompt", default="the same character arms down")
    parser.add_argument("-o", "--output", type=Path, default="several.png")
    parser.add_argument("--steps", type=int, help="(the bundle's)")
    options = parser.parse_args()

    pipe = Pipeline.load(options.bundle, device="cpu")
    references = [Image.open(path) for path in options.references]
    edited = pipe.edit(references, options.prompt, steps=options.steps, progress=True)
    edited.save(options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    try:
        main()
    except KontextError as error:
        raise SystemExit(f"error: {error}") from None
