"""Flags and checks that several benchmarks share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..export.cli.source_flags import EMBEDDED
from ..runtime.cli import parse_seed, parse_width_height
from ..runtime.noise import check_seed


def add_edit_flags(parser: argparse.ArgumentParser, *, steps: int, repeat: int) -> None:
    """Flags of the one edit that is measured; `edit_settings` reads them. `steps` and `repeat` are defaults."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=EMBEDDED,
        help="what the bundle was exported from (the embedded model)",
    )
    parser.add_argument(
        "-i", "--image", type=Path, metavar="FILE", help="picture to edit (a generated scene)"
    )
    parser.add_argument("--prompt", help="instruction (the scene's)")
    parser.add_argument(
        "--size",
        type=parse_width_height,
        metavar="WxH",
        help="output size (the most square of the bundle's preferred sizes)",
    )
    parser.add_argument("--steps", type=int, default=steps, help=f"sampler steps ({steps})")
    parser.add_argument("--guidance", type=float, default=2.5, help="guidance scale (2.5)")
    add_seed_flag(parser, "seed of the noise (0)")
    parser.add_argument("--repeat", type=int, default=repeat, help=f"measured edits per side ({repeat})")


def add_comparison_flags(parser: argparse.ArgumentParser) -> None:
    """What bundles are compared with, on which edits; `edit_count` reads how many."""
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="BUNDLE", help="the same model, exported with --fp32"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a local copy of KontextBench, GEdit-Bench, ImgEdit, MagicBrush or Emu Edit, or a folder of one's own "
        "(docs/benchmarks.md); without it, held-out scenes of the embedded model",
    )
    parser.add_argument("--language", default="en", help="of a set's instructions; all for all (en)")
    parser.add_argument(
        "-n", "--count", type=int, help="edits of each kind of scene (2), or edits of the set in all (100)"
    )
    add_seed_flag(parser, "of the scenes, the set's share and the noise (0)")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="write every edit's source and pictures into FOLDER, for kontext-bench report",
    )


def edit_count(arguments: argparse.Namespace) -> int:
    """`--count`, or its default for what is edited. Raises KontextError for a count below 1."""
    if arguments.count is not None:
        at_least(arguments, count=1)
        return int(arguments.count)
    return 100 if arguments.data else 2


def add_seed_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """`--seed`, 0 by default; one that no noise can be drawn from is refused before anything is measured."""
    parser.add_argument("--seed", type=usable_seed, default=0, metavar="N", help=what)


def usable_seed(text: str) -> int:
    seed = parse_seed(text)
    try:
        check_seed(seed)
    except KontextError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return seed


def edit_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for a `measure_…` function. Raises KontextError for a count below 1."""
    at_least(arguments, steps=1, repeat=1)
    return {
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "seed": arguments.seed,
        "size": arguments.size,
        "repeat": arguments.repeat,
        "image": arguments.image,
        "prompt": arguments.prompt,
        "progress": sys.stderr.isatty(),
    }


def at_least(arguments: argparse.Namespace, **least: int) -> None:
    """Raises KontextError if a flag's number is below the smallest allowed one: `at_least(arguments, steps=1)`."""
    for name, smallest in least.items():
        if getattr(arguments, name) < smallest:
            flag = f"--{name.replace('_', '-')}"
            raise KontextError(f"{flag} must be at least {smallest}, not {getattr(arguments, name)}")


def parse_counts(text: str, flag: str) -> list[int]:
    """`28,4` as [28, 4]. Raises KontextError unless every entry is a positive whole number."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise KontextError(f"{flag} takes positive whole numbers, such as 28 or 28,4; not {text!r}")
    return [int(word) for word in words]


def parse_names(text: str, flag: str, known: tuple[str, ...]) -> list[str]:
    """`fp8,int4` as ["fp8", "int4"]. Raises KontextError for a name that is not in `known`."""
    names = [word.strip() for word in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise KontextError(f"{flag} takes {', '.join(known)}; not {', '.join(map(repr, unknown))}")
    return names
