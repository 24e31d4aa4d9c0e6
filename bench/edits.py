"""Success rate of edits: a bundle edits held-out scenes, and the embedded judge decides on each result.

Every number of steps gets the same edits, drawn from one seed. Familiar edits are held-out combinations in training's
words and drawing; unfamiliar ones are in wordings and in a style of drawing that training never sees.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from ..runtime import Pipeline
from ..tiny.edits import GROUPS, KINDS, Edit, sample_edit
from ..tiny.judge import judge
from ..tiny.scenes import render
from ..tiny.variety import unfamiliar_edit
from .flags import add_seed_flag, at_least, parse_counts
from .machine import describe_machine, machine_line
from .report import Table, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--steps", default="28,4", metavar="N,…", help="a column of the table for each (28,4)"
    )
    parser.add_argument("-n", "--count", type=int, default=50, help="edits of each kind (50)")
    parser.add_argument("--guidance", type=float, default=None, help="guidance scale (the bundle's)")
    add_seed_flag(parser, "seed of the scenes and of the noise (0)")
    parser.add_argument("--batch", type=int, default=25, help="edits per batch (25)")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda", "openvino", "rtx", "tensorrt"], help="(cpu)"
    )


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, count=1, batch=1)
    result = measure_success(
        arguments.bundle,
        steps=parse_counts(arguments.steps, "--steps"),
        count=arguments.count,
        guidance=arguments.guidance,
        seed=arguments.seed,
        batch=arguments.batch,
        device=arguments.device,
        progress=sys.stderr.isatty(),
    )
    finish(result, tables(result), footer(result), arguments.json)


def held_out(kind: str, count: int, seed: int) -> list[Edit]:
    """`count` edits of one kind from the test split; the same seed gives the same edits."""
    rng = np.random.default_rng([seed, *kind.encode()])
    return [sample_edit(rng, split="test", kind=kind) for _ in range(count)]


def unfamiliar(kind: str, count: int, seed: int) -> list[Edit]:
    """As `held_out`, in words and drawn by a hand that training does not know."""
    rng = np.random.default_rng([seed, *kind.encode()])
    return [unfamiliar_edit(rng, kind) for _ in range(count)]


SETS: dict[str, Callable[[str, int, int], list[Edit]]] = {"successes": held_out, "unfamiliar": unfamiliar}
"""Results' keys → what draws the edits."""


def judged(
    pipe: Pipeline, edits: Sequence[Edit], *, steps: int, guidance: float | None, seed: int, batch: int
) -> list[bool]:
    """Runs `edits`, all of one kind, in batches; returns the judge's verdict on each."""
    verdicts = []
    for start in range(0, len(edits), batch):
        part = edits[start : start + batch]
        sources = [PIL.Image.fromarray(render(edit.source)) for edit in part if edit.source is not None]
        prompts = [edit.prompt for edit in part]
        pictures = pipe.edit(sources or None, prompts, steps=steps, guidance=guidance, seed=seed + start)
        assert isinstance(pictures, list)  # a list of prompts, a list of pictures
        verdicts += [bool(judge(picture, edit).success) for edit, picture in zip(part, pictures, strict=True)]
    return verdicts


def measure_success(
    bundle: Path,
    *,
    steps: Sequence[int],
    count: int,
    guidance: float | None,
    seed: int,
    batch: int,
    device: str,
    progress: bool = False,
) -> dict[str, Any]:
    """Counts the successes of each kind at each number of steps, of `count` each: `successes[steps][kind]`, and
    `unfamiliar[steps][kind]`; `verdicts` and `unfamiliar_verdicts` have each edit's."""
    pipe = Pipeline.load(bundle, device=device)
    found: dict[str, dict[str, dict[str, list[bool]]]] = {
        name: {str(number): {} for number in steps} for name in SETS
    }
    total = len(SETS) * len(steps) * len(KINDS) * count
    with tqdm(total=total, desc="edits", unit="edit", disable=not progress) as bar:
        for name, draw in SETS.items():
            for kind in KINDS:
                edits = draw(kind, count, seed)
                for number in steps:
                    found[name][str(number)][kind] = judged(
                        pipe, edits, steps=number, guidance=guidance, seed=seed, batch=batch
                    )
                    bar.update(count)
    counts = {
        name: {
            number: {kind: sum(each) for kind, each in kinds.items()} for number, kinds in verdicts.items()
        }
        for name, verdicts in found.items()
    }
    return {
        "what": "success of edits",
        "model": pipe.bundle.manifest["model"]["name"],
        "precision": pipe.bundle.manifest["precision"],
        "count": count,
        "guidance": guidance,
        "seed": seed,
        "device": device,
        "groups": GROUPS,
        **counts,
        "verdicts": found["successes"],
        "unfamiliar_verdicts": found["unfamiliar"],
        "machine": describe_machine(),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """A row for each kind, each group of several kinds, and all; a column for each set and number of steps."""
    groups: dict[str, list[str]] = {}
    for kind, group in result["groups"].items():
        groups.setdefault(group, []).append(kind)
    rows: list[list[str]] = []
    for group, kinds in groups.items():
        if len(kinds) > 1:
            rows += [[f"{group}: {kind}", *shares(result, [kind])] for kind in kinds]
        rows.append([group, *shares(result, kinds)])
    rows.append(["all", *shares(result, list(result["groups"]))])
    heads = [f"{steps} steps" for steps in result["successes"]]
    heads += [f"unfamiliar, {steps} steps" for steps in result.get("unfamiliar", {})]
    return [Table(["edit", *heads], rows)]


def shares(result: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    """The success rate over `kinds`, in percent, for each set and number of steps."""
    edits = len(kinds) * result["count"]
    columns = [*result["successes"].values(), *result.get("unfamiliar", {}).values()]
    return [f"{sum(each[kind] for kind in kinds) / edits:.0%}" for each in columns]


def footer(result: dict[str, Any]) -> str:
    return (
        f"{result['model']}, {result['precision']['weights']} weights, {result['count']} edits of each kind, "
        f"seed {result['seed']}.\n{machine_line(result['machine'])}"
    )
