"""What bundles do to edits: the region that must stay, characters, text, five edits in a chain, and few steps.

Everything is measured of each bundle and of the reference itself, on the same edits and seeds, and compared with what
another seed of the reference changes: an error below that difference does not matter. The velocity is `fidelity`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...runtime import Pipeline
from ...runtime.bundle import Bundle
from ..fidelity.benchmark import open_bundles
from ..fidelity.bits_per_weight import check_reference
from ..fidelity.picture_metrics import Compare, available_metrics
from ..flags import add_comparison_flags, at_least, edit_count, parse_counts
from ..machine import describe_machine
from ..number_formats import formats_of
from ..pictures import REFERENCE, SOURCE, PictureFolder
from ..report import finish
from .comparison import Comparison, Runs, Task
from .known_edits import Chain, KnownEdit, data_edits, scene_chains, scene_edits
from .measures import EMBEDDINGS
from .runs import Instruments, read_text
from .summaries import summary
from .tables import absences, footer, tables
from .text import why_unreadable

__all__ = ["add_flags", "footer", "measure_edit_fidelity", "run", "tables"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_comparison_flags(parser)
    parser.add_argument(
        "--steps",
        default="28,4",
        metavar="N,…",
        help="sampler steps; all are compared with the reference at the most (28,4)",
    )
    parser.add_argument("--chains", type=int, help="chains of edits (as -n; of a set a fifth of it); 0: none")


def run(arguments: argparse.Namespace) -> None:
    count = edit_count(arguments)
    if arguments.chains is None:
        arguments.chains = -(-count // 5) if arguments.data else count
    at_least(arguments, chains=0)
    steps = parse_counts(arguments.steps, "--steps")
    chains, seed = arguments.chains, arguments.seed
    if arguments.data:
        edits, chained = data_edits(arguments.data, count, chains, seed, arguments.language)
    else:
        edits, chained = scene_edits(count, seed), scene_chains(chains, seed)
    pictures = PictureFolder.prepare(arguments.pictures, arguments.json) if arguments.pictures else None
    result = measure_edit_fidelity(
        arguments.reference,
        arguments.bundles,
        edits,
        chained,
        data=arguments.data.name if arguments.data else None,
        steps=steps,
        seed=seed,
        pictures=pictures,
        progress=sys.stderr.isatty(),
    )
    if pictures is not None:
        result["pictures"] = pictures.as_json(arguments.json)
    for line in absences(result):
        print(line)
    finish(result, tables(result), footer(result), arguments.json)


def measure_edit_fidelity(
    reference: Path,
    bundles: Sequence[Path],
    edits: Sequence[KnownEdit],
    chains: Sequence[Chain],
    *,
    steps: Sequence[int],
    seed: int,
    data: str | None = None,
    pictures: PictureFolder | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Makes all edits and chains with the reference, twice, and with every bundle; `data` names the set that they are
    of.

    Raises:
        KontextError: a bundle is of another model, two bundles have the same name, or the reference is no reference.
    """
    opened_reference = Bundle.open(reference)
    check_reference(opened_reference)
    opened = open_bundles(opened_reference, bundles)
    teacher = Pipeline.load(opened_reference, backend="onnxruntime")
    instruments, absent = find_instruments(edits, chains)
    turns = sum(map(len, chains))
    total = (1 + len(opened)) * (len(steps) * len(edits) + turns) + len(edits) + turns
    entries = {}
    with tqdm(total=total, desc="edits", unit="edit", disable=not progress) as bar:
        task = Task(edits, chains, steps, seed, instruments, bar.update)
        known = Comparison.run(teacher, task)
        keep_reference(pictures, known.runs, task)
        for name, bundle in opened.items():
            runs = task.run(Pipeline.load(bundle, backend="onnxruntime"))
            keep_outputs(pictures, name, runs, task)
            entries[name] = {**formats_of(bundle), **known.entry(runs)}
    return {
        "what": "edit-fidelity",
        "model": teacher.bundle.name,
        "data": data,
        "seed": seed,
        "steps": list(steps),
        **describe_edits(known),
        "reference": {"name": reference.name, **known.entry(known.runs)},
        "other_seed": known.other_seed(),
        "bundles": entries,
        "targets": target_texts(task),
        "absent_measures": absent,
        "machine": describe_machine(),
    }


def keep_reference(pictures: PictureFolder | None, runs: Runs, task: Task) -> None:
    """Writes the sources and the reference's pictures at the most steps."""
    if pictures is None:
        return
    for number, (edit, made) in enumerate(zip(task.edits, runs.edits[task.most], strict=True)):
        pictures.add(number, SOURCE, edit.case.picture())
        pictures.add(number, REFERENCE, made.picture)


def keep_outputs(pictures: PictureFolder | None, name: str, runs: Runs, task: Task) -> None:
    """Writes one bundle's pictures at the most steps."""
    if pictures is None:
        return
    for number, made in enumerate(runs.edits[task.most]):
        pictures.add_output(number, name, made.picture)


def find_instruments(
    edits: Sequence[KnownEdit], chains: Sequence[Chain]
) -> tuple[Instruments, dict[str, str]]:
    """What can be measured of these edits here, and why the rest cannot."""
    embeddings: dict[str, Compare] = {}
    absent: dict[str, str] = {}
    if any(edit.has_character for edit in edits):
        embeddings, absent = available_metrics(EMBEDDINGS)
    unreadable = why_unreadable()
    if unreadable is not None and any(edit.wanted for edit in edits):
        absent["text_error"] = unreadable
    if not chains:
        absent["turns"] = "no edits go on with each other's results"
    return Instruments(embeddings, unreadable is None), absent


def describe_edits(known: Comparison) -> dict[str, Any]:
    """What was done, edit by edit in the order of all `…_each`."""
    edits, regions = known.task.edits, known.regions
    return {
        "edits": len(edits),
        "keys": [edit.case.key for edit in edits],
        "kinds": [edit.case.category for edit in edits],
        "prompts": [edit.case.prompt for edit in edits],
        "wanted": [edit.wanted for edit in edits],
        "characters": [edit.has_character for edit in edits],
        "regions": [None if region is None else region.origin for region in regions],
        "kept_shares": [
            None if region is None else round(float(1 - region.changed.mean()), 4) for region in regions
        ],
        "chains": [[edit.case.key for edit in chain] for chain in known.task.chains],
        "chain_kinds": [[edit.case.category for edit in chain] for chain in known.task.chains],
    }


def target_texts(task: Task) -> dict[str, Any]:
    """How well the text of the one right result is read: no bundle is expected to do better."""
    if not task.instruments.text:
        return {}
    every = [
        read_text(edit.target(), edit) if edit.wanted is not None and edit.target is not None else {}
        for edit in task.edits
    ]
    return summary(every, task.seed)
