"""Edits every picture of a folder, several at a time: NAME.png by the instruction in NAME.txt.

Run from the root of the repository, after `kontext-export --fp8 -o my-bundle`:

    python examples/batch.py
    python examples/batch.py my-bundle --pictures examples/pictures --output edited --batch 4 --steps 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import Pipeline

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description="Edits every picture of a folder.")
    parser.add_argument("bundle", nargs="?", default="my-bundle")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of NAME.png with NAME.txt")
    parser.add_argument("--output", type=Path, default="edited", help="folder for the edited pictures")
    parser.add_argument("--batch", type=int, default=4, help="pictures edited together")
    parser.add_argument("--steps", type=int, help="(the bundle's)")
    options = parser.parse_args()

    pipe = Pipeline.load(options.bundle, device="cpu")
    options.output.mkdir(exist_ok=True)
    work = [path for path in sorted(options.pictures.glob("*.png")) if path.with_suffix(".txt").exists()]
    for start in range(0, len(work), options.batch):
        paths = work[start : start + options.batch]
        pictures = [Image.open(path) for path in paths]
        prompts = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
        for path, prompt, edited in zip(
            paths, prompts, pipe.edit(pictures, prompts, steps=options.steps), strict=True
        ):
            edited.save(options.output / path.name)
            print(f"{path.name}: {prompt}")


if __name__ == "__main__":
    try:
        main()
    except KontextError as error:
        raise SystemExit(f"error: {error}") from None
