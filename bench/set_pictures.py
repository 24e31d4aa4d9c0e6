"""Makes the edits of a data set, and writes the pictures where the set's own scorer looks for them.

GEdit-Bench's reads OUT/fullset/TASK/LANGUAGE/KEY.png and the source beside it, KEY_SRCIMG.png; ImgEdit's OUT/KEY.png.
Of other sets they are OUT/CATEGORY/KEY.png.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..errors import KontextError, one_line
from ..export.edit_sets.layouts import GEDIT, IMGEDIT, read_edit_set
from ..export.edit_sets.samples import Sample
from ..runtime import Pipeline
from ..runtime.images import save_picture
from ..runtime.number_checks import checked_scale
from .flags import add_seed_flag, at_least

NAME = re.compile(r"[\w][\w .()+,-]{0,199}")
"""Of a key, a category or a language as a file's name: a set from elsewhere must not choose where files go."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="a local copy of the set (docs/benchmarks.md)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="for the pictures")
    parser.add_argument("--language", default="all", help="of a set's instructions (all)")
    parser.add_argument("-n", "--count", type=int, help="edits, a share of each category (all)")
    parser.add_argument("--steps", type=int, help="sampler steps (the bundle's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the bundle's)")
    add_seed_flag(parser, "of the share and of the noise (0)")
    parser.add_argument("--device", default="auto", help="as for kontext-edit (auto)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.count is not None:
        at_least(arguments, count=1)
    if arguments.steps is not None:
        at_least(arguments, steps=1)
    if arguments.guidance is not None:
        checked_scale(arguments.guidance, "--guidance")
    found = read_edit_set(arguments.data, arguments.language)
    if arguments.count is not None:
        found = found.usable(arguments.count, arguments.seed)
    if not found.samples:
        more = f": {'; '.join(found.skipped[:3])}" if found.skipped else ""
        raise KontextError(f"{arguments.data} has no edits that can be used{more}")
    make_folder(arguments.output)
    skipped, made, there = list(found.skipped), 0, 0
    taken: set[Path] = set()
    pipe = Pipeline.load(arguments.bundle, device=arguments.device)
    for index, sample in enumerate(tqdm(found.samples, unit="edit", disable=not sys.stderr.isatty())):
        try:
            result, source = places(found.name, sample, arguments.output)
            own = {each for each in (result, source) if each is not None}
            if not taken.isdisjoint(own):
                raise KontextError("the set has another edit whose picture has that name")
            taken |= own
            if result.exists() and (source is None or source.exists()):
                there += 1
                continue
            picture = sample.picture()
            edited = pipe.edit(
                picture,
                sample.prompt,
                steps=arguments.steps,
                guidance=arguments.guidance,
                seed=arguments.seed + index,
            )
            write(edited, result)
            if source is not None and picture is not None:
                write(picture.convert("RGB"), source)
            made += 1
        except KontextError as error:
            skipped.append(f"{sample.key}: {error}")
    for line in skipped:
        print(f"skipped: {one_line(line)}", file=sys.stderr)
    print(
        f"{made} edits of {found.name} in {arguments.output}"
        + (f", {there} were there" if there else "")
        + (f", {len(skipped)} skipped" if skipped else "")
    )
    return 0 if made or there else 2


def places(name: str, sample: Sample, folder: Path) -> tuple[Path, Path | None]:
    """Where a result goes, and its source if the scorer reads that too.

    Raises:
        KontextError: the set's names are none for files.
    """
    parts = {GEDIT: ["fullset", sample.category, sample.language], IMGEDIT: []}.get(name, [sample.category])
    parts = [part for part in parts if part] + [sample.key]
    for part in parts:
        if NAME.fullmatch(part) is None:
            raise KontextError(f"{part!r:.80} cannot be a file's name")
    result = folder.joinpath(*parts[:-1], f"{parts[-1]}.png")
    return result, result.with_name(f"{sample.key}_SRCIMG.png") if name == GEDIT else None


def write(picture: Image.Image, path: Path) -> None:
    make_folder(path.parent)
    save_picture(picture, path)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KontextError(f"cannot make {folder}: {error.strerror}") from None
