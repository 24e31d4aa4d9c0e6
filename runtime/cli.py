"""`kontext-edit BUNDLE -i in.png --prompt "…" -o out.png`: one edit from the command line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import KontextError

DEVICES = ("auto", "cpu", "cuda", "tensorrt")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="kontext-edit", description="Edits a picture with a bundle.")
    result.add_argument("bundle", type=Path, metavar="BUNDLE", help="a folder that kontext-export wrote")
    result.add_argument(
        "-i", "--image", type=Path, action="append", default=[], metavar="FILE",
        help="a reference picture; repeat it for several, leave it out to draw from the prompt alone",
    )  # fmt: skip
    result.add_argument("-p", "--prompt", required=True, help="the instruction")
    result.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the picture to write")
    result.add_argument("--steps", type=int, help="sampler steps (default: the bundle's)")
    result.add_argument("--guidance", type=float, help="guidance scale (default: the bundle's)")
    result.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    result.add_argument(
        "--size", metavar="WxH", help="output size in pixels (default: the reference's aspect, at a size the model prefers)"
    )
    result.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures to make, with seeds counted up")
    result.add_argument("--device", choices=DEVICES, default="auto", help="where to run (default: auto)")
    result.add_argument("--low-memory", action="store_true", help="drop each network after its part of the edit")
    result.add_argument("--verify", action="store_true", help="check the bundle's files against their SHA-256 first")
    result.add_argument("--quiet", action="store_true", help="no progress bar, no messages")
    return result


def parse_size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise KontextError(f"--size takes WIDTHxHEIGHT, such as 1024x768, not {text!r}")
    return int(width), int(height)


def output_paths(path: Path, count: int) -> list[Path]:
    """out.png, or out-0.png, out-1.png, … for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def run(options: argparse.Namespace) -> None:
    size = parse_size(options.size) if options.size else None
    # Faults that need no model are found before one is loaded.
    if not options.output.absolute().parent.is_dir():
        raise KontextError(f"{options.output.absolute().parent} does not exist: make the folder first")
    if options.steps is not None and options.steps < 1:
        raise KontextError(f"--steps must be 1 or more, not {options.steps}")
    if options.num_images < 1:
        raise KontextError(f"--num-images must be 1 or more, not {options.num_images}")
    from .images import check_format, open_picture, save_picture

    check_format(options.output)
    images = [open_picture(path) for path in options.image]
    from .pipeline import Pipeline

    pipe = Pipeline.load(
        options.bundle, device=options.device, verify=options.verify, low_memory=options.low_memory
    )
    pictures = pipe.edit(
        images or None,
        options.prompt,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        size=size,
        num_images=options.num_images,
        progress=sys.stderr.isatty() and not options.quiet,
    )
    made = pictures if isinstance(pictures, list) else [pictures]
    for picture, path in zip(made, output_paths(options.output, options.num_images), strict=True):
        save_picture(picture, path)
        if not options.quiet:
            print(f"wrote {path} ({picture.width}x{picture.height})")


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            run(options)
    except KontextError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
