"""The demo: one edit of every kind on scenes, one from text alone, two of a photograph, on a sheet and a page."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from ..errors import KontextError
from ..installation import install_command
from ..runtime import Pipeline
from ..tiny.contact import contact_sheet
from ..tiny.edits import KINDS, sample_edit
from ..tiny.scenes import render
from . import provenance
from .flags import add_seed_flag, at_least
from .html_report.command import check_output, make_report
from .machine import describe_machine
from .number_formats import formats_of
from .pictures import OUTPUTS, SOURCE
from .report import write_result, write_text

PHOTOGRAPH_PROMPTS = ("make it night", "make it black and white")
NEXT = """\
{count} edits in {seconds:.0f} s ({steps} steps each). Before and after, side by side:
  {sheet}
and on a page, with sliders:
  {report}

Next:
  {bin}kontext-edit {bundle} -i {folder}/scene.png --prompt "{prompt}" -o out.png
  {bin}kontext-edit {bundle} -i your-photograph.jpg --prompt "make it night" --steps 4 -o out.png
  {bin}kontext-bench latency {bundle}
  {bin}kontext-export --help      (a FLUX.1 Kontext diffusers folder in place of the embedded model)
  {bin}kontext-serve {bundle}      (edit in your browser, at http://127.0.0.1:8080)"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), metavar="FOLDER", help="for the pictures (demo)"
    )
    parser.add_argument("--steps", type=int, default=28, help="sampler steps (28)")
    add_seed_flag(parser, "seed of the scenes and of the noise (0)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, steps=1)
    words = [
        "demo",
        str(arguments.bundle),
        "--output",
        str(arguments.output),
        "--steps",
        str(arguments.steps),
    ]
    provenance.begin([*words, "--seed", str(arguments.seed)], seed=arguments.seed)
    print(make_demo(arguments.bundle, arguments.output, steps=arguments.steps, seed=arguments.seed))


def photograph() -> PIL.Image.Image:
    """scikit-image's astronaut (NASA, public domain), cropped to 3:4."""
    try:
        import skimage.data
    except ImportError as error:
        raise KontextError(f"the demo needs scikit-image: {install_command('bench')} ({error})") from error
    return PIL.Image.fromarray(skimage.data.astronaut()[0:400, 75:375])


def make_demo(bundle: Path, folder: Path, *, steps: int, seed: int) -> str:
    """Writes `folder/contact-sheet.png`, `report.html` and the pictures of each edit; returns what to print."""
    rng = np.random.default_rng(seed)
    edits = [sample_edit(rng, split="test", kind=kind) for kind in (*KINDS, "draw")]
    work = [
        (None if edit.source is None else PIL.Image.fromarray(render(edit.source)), edit.prompt)
        for edit in edits
    ]
    work += [(photograph(), prompt) for prompt in PHOTOGRAPH_PROMPTS]
    kinds = [*(edit.kind for edit in edits), *("photograph" for _ in PHOTOGRAPH_PROMPTS)]
    pipe = Pipeline.load(bundle, device="cpu")
    make_folder(folder)
    report = folder / "report.html"
    check_output(report, force=True)
    named: list[dict[str, Any]] = []
    rows: list[tuple[PIL.Image.Image | None, PIL.Image.Image, str]] = []
    start = time.perf_counter()
    for index, (before, prompt) in enumerate(
        tqdm(work, desc="edits", unit="edit", disable=not sys.stderr.isatty())
    ):
        after = pipe.edit(before, prompt, steps=steps, seed=seed)
        assert isinstance(after, PIL.Image.Image)  # one prompt, one picture
        named.append({OUTPUTS: {pipe.bundle.folder.name: f"edit-{index:02d}.png"}})
        after.save(folder / f"edit-{index:02d}.png")
        if before is not None:
            named[-1][SOURCE] = f"source-{index:02d}.png"
            before.save(folder / named[-1][SOURCE])
        rows.append((before, after, prompt))
    seconds = time.perf_counter() - start
    sheet = folder / "contact-sheet.png"
    contact_sheet(rows).save(sheet)
    scene, prompt = work[0]
    assert scene is not None
    scene.save(folder / "scene.png")
    result = folder / "demo.json"
    write_result(
        result,
        {
            "what": "demo",
            "model": pipe.bundle.name,
            **formats_of(pipe.bundle),
            "steps": steps,
            "seed": seed,
            "seconds": round(seconds, 3),
            "kinds": kinds,
            "prompts": [prompt for _, _, prompt in rows],
            "pictures": {"folder": ".", "edits": named},
            "machine": describe_machine(),
        },
    )
    write_text(report, make_report([result]).html)
    script = Path(sys.executable).with_name("kontext-edit")
    return NEXT.format(
        count=len(rows),
        seconds=seconds,
        steps=steps,
        sheet=sheet,
        report=report,
        bin="" if not script.is_file() else f"{shown(script.parent)}/",
        bundle=bundle,
        folder=folder,
        prompt=prompt,
    )


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise KontextError(f"cannot make the folder {folder}: {fault.strerror}") from None


def shown(path: Path) -> Path:
    """`path` relative to the current folder if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
