"""`kontext-edit BUNDLE -i in.png --prompt "…" -o out.png`: one edit from the command line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import KontextError
from .backends import BACKENDS, DEVICES

if TYPE_CHECKING:
    from .bundle import Bundle


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise KontextError(f"{message} (kontext-edit --help shows the flags)")


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="kontext-edit", description="Edits a picture with a bundle.")
    result.add_argument("bundle", type=Path, metavar="BUNDLE", help="a folder that kontext-export wrote")
    result.add_argument(
        "-i",
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a reference picture; repeat it for several, leave it out to draw from the prompt alone",
    )
    result.add_argument("-p", "--prompt", required=True, help="the instruction")
    result.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the picture to write, replaced if it exists",
    )
    result.add_argument("--steps", type=int, help="sampler steps (default: the bundle's)")
    result.add_argument("--guidance", type=float, help="guidance scale (default: the bundle's)")
    result.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    result.add_argument(
        "--size",
        type=parse_size,
        metavar="WxH",
        help="output size in pixels (default: the reference's aspect, at a size the model prefers)",
    )
    result.add_argument(
        "--num-images",
        type=int,
        default=1,
        metavar="N",
        help="pictures to make, with seeds counted up, as FILE-0, FILE-1, …",
    )
    result.add_argument("--device", choices=DEVICES, default="auto", help="where to run (default: auto)")
    result.add_argument(
        "--backend",
        choices=BACKENDS,
        default="onnxruntime",
        help="what runs the networks; torch needs PyTorch (default: onnxruntime)",
    )
    result.add_argument(
        "--offload",
        action="store_true",
        help="with --backend torch: keep the transformer in host memory, for GPUs smaller than it",
    )
    result.add_argument(
        "--verify", action="store_true", help="check the bundle's files by their SHA-256 first"
    )
    result.add_argument("--quiet", action="store_true", help="no progress bar, no messages")
    return result


def parse_size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()) or len(text) > 20:
        raise KontextError(f"--size takes WIDTHxHEIGHT, such as 1024x768, not {text!r}")
    return int(width), int(height)


def output_paths(path: Path, count: int) -> list[Path]:
    """out.png, or out-0.png, out-1.png, … for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def run(options: argparse.Namespace) -> None:
    # Faults that need no model are found before one is loaded.
    for name, value in (("steps", options.steps), ("num-images", options.num_images)):
        if value is not None and value < 1:
            raise KontextError(f"--{name} must be 1 or more, not {value}")
    from .images import check_writable, open_picture, save_picture

    paths = output_paths(options.output, options.num_images)
    for path in paths:
        check_writable(path)
    images = [open_picture(path) for path in options.image]
    from .bundle import Bundle
    from .pipeline import Pipeline

    show = sys.stderr.isatty() and not options.quiet
    bundle = Bundle.open(options.bundle)
    if options.verify:
        verify(bundle, show)
    # One edit needs every network once, or as long as it lasts: keeping them would only cost memory.
    pipe = Pipeline.load(
        bundle, device=options.device, backend=options.backend, offload=options.offload, low_memory=True
    )
    pictures = pipe.edit(
        [images],
        [options.prompt],
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        size=options.size,
        num_images=options.num_images,
        progress=show,
    )
    for picture, path in zip(pictures, paths, strict=True):
        save_picture(picture, path)
        if not options.quiet:
            print(f"wrote {path} ({picture.width}x{picture.height})")


def verify(bundle: Bundle, show: bool) -> None:
    from tqdm import tqdm

    total = sum(entry.size for entry in bundle.files.values())
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=not show) as bar:
        bundle.verify(bar.update)


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        options = parser().parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            run(options)
    except KontextError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: not enough memory: try a smaller --size, or fewer --num-images", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return interrupted()
    except ImportError as fault:
        if comes_of_interrupt(fault):
            return interrupted()
        print(f"error: a library cannot be loaded: {' '.join(str(fault).split())}", file=sys.stderr)
        return 2
    return 0


def interrupted() -> int:
    print("\ninterrupted", file=sys.stderr)
    return 130


def comes_of_interrupt(fault: BaseException | None) -> bool:
    """Ctrl-C while a compiled library is loading surfaces as the ImportError that it causes."""
    while fault is not None:
        if isinstance(fault, KeyboardInterrupt):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
