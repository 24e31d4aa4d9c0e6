"""How close bundles stay to a reference bundle, on the same held-out edits and seeds.

(a) The velocity's signal-to-noise ratio in dB along the reference's own trajectory (teacher forcing): every step starts
    from the reference's latents, so errors do not accumulate and steps can be compared.
(b) The final picture of a free run, by every metric of `picture_metrics`, and the latents' distance from the
    reference's after every step.
(c) The edits that the embedded judge accepts.

The PSNR of a whole trajectory alone says little: it mostly measures how fast two runs diverge. Other libraries' weights
(`peers`) are measured in the same way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...decibels import decibels
from ...errors import KontextError
from ...export.calibration.teacher_forcing import Array, Recorder, TeacherForced
from ...runtime import Pipeline
from ...runtime.bundle import Bundle
from ..cases import Case, data_cases, scene_cases, success_rate
from ..flags import add_comparison_flags, at_least, edit_count
from ..machine import describe_machine
from ..pictures import REFERENCE, SOURCE, PictureFolder
from ..report import finish
from . import bits_per_weight, importance, peers
from .edit_runs import EditRun, run_edit, run_edits
from .intervals import check_scipy, intervals
from .picture_metrics import METRICS, Compare, available_metrics
from .places import rank
from .reference_memory import check_memory
from .sides import ComparedBundle, all_sides
from .tables import absences, categories_table, detail_tables, footer, tables

__all__ = ["add_flags", "footer", "measure_fidelity", "run", "tables"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_comparison_flags(parser)
    parser.add_argument(
        "--peers",
        metavar="NAME,…",
        help="other libraries' quantization of the same weights, such as torchao-int4,bnb-nf4,gguf-q4_0; all: those "
        "that are installed (none)",
    )
    parser.add_argument("--steps", type=int, default=28, help="sampler steps (28)")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 if --peers all had to skip peers that are not installed",
    )


def run(arguments: argparse.Namespace) -> int:
    at_least(arguments, steps=1)
    count = edit_count(arguments)
    names = peers.parse_peers(arguments.peers)
    missing = find_missing(names, arguments.reference)
    if missing and arguments.peers != "all":
        raise KontextError("; ".join(missing.values()))
    for why in missing.values():
        print(f"skipped: {why}", file=sys.stderr)
    if arguments.data:
        cases = data_cases(arguments.data, count, arguments.seed, arguments.language)
    else:
        cases = scene_cases(count, arguments.seed)
    pictures = PictureFolder.prepare(arguments.pictures, arguments.json) if arguments.pictures else None
    result = measure_fidelity(
        arguments.reference,
        arguments.bundles,
        cases,
        data=arguments.data.name if arguments.data else None,
        steps=arguments.steps,
        seed=arguments.seed,
        peer_names=[name for name in names if name not in missing],
        pictures=pictures,
        progress=sys.stderr.isatty(),
    )
    if pictures is not None:
        result["pictures"] = pictures.as_json(arguments.json)
    for line in absences(result):
        print(line)
    finish(
        result,
        [*tables(result), *detail_tables(result), categories_table(result)],
        footer(result),
        arguments.json,
    )
    return 1 if missing and arguments.strict else 0


def find_missing(names: Sequence[str], reference: Path) -> dict[str, str]:
    """Peers that cannot be measured here, or not beside this reference, and why."""
    missing = {name: why for name in names if (why := peers.why_unavailable(name)) is not None}
    calibrated = [name for name in names if name in peers.CALIBRATED and name not in missing]
    if calibrated and (why := importance.why_unavailable(Bundle.open(reference))) is not None:
        missing |= {name: f"{name}: {why}" for name in calibrated}
    return missing


@dataclass
class ReferenceRun:
    """One edit by the reference, the `number`th; `size` is its picture's, `velocities` are those of all steps."""

    number: int
    case: Case
    seed: int
    size: tuple[int, int] | None
    run: EditRun
    velocities: list[Array]


def reference_runs(
    pipe: Pipeline, cases: Sequence[Case], steps: int, seed: int, done: Callable[[], object]
) -> list[ReferenceRun]:
    """Runs all edits, the first with `seed`, each further one with the next; `done` is called after each."""
    result: list[ReferenceRun] = []
    backend = pipe.backend
    for number, case in enumerate(cases):
        recorder = Recorder(backend)
        pipe.backend = recorder
        free = run_edit(pipe, case, steps, seed + number)
        picture = case.picture()
        size = None if picture is None else picture.size
        result.append(ReferenceRun(number, case, seed + number, size, free, recorder.velocities))
        done()
    pipe.backend = backend
    return result


def compare(
    compared: ComparedBundle,
    references: Sequence[ReferenceRun],
    metrics: Mapping[str, Compare],
    done: Callable[[], object],
    pictures: PictureFolder | None,
) -> dict[str, Any]:
    """Runs one bundle along all reference runs; returns everything that is measured, as JSON."""
    steps = len(references[0].velocities)
    noise, signal, distances = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    count = len(references)
    each = {name: [0.0] * count for name in metrics}
    successes: list[bool | None] = [None] * count
    noises, ratios = [0.0] * count, [0.0] * count
    for known, found, energies in runs_of(compared, references, done):
        successes[known.number] = found.success
        if pictures is not None:
            pictures.add_output(known.number, compared.name, found.picture)
        for name, metric in metrics.items():
            each[name][known.number] = metric(found.picture, known.run.picture)
        for step, (ours, theirs) in enumerate(zip(found.latents, known.run.latents, strict=True)):
            apart, whole = (np.square(x, dtype=np.float64).sum() for x in (ours - theirs, theirs))
            distances[step] += np.sqrt(apart / whole) / count
        noise += energies[0]
        signal += energies[1]
        noises[known.number] = float(f"{energies[0].sum():.6g}")
        ratios[known.number] = decibels(energies[1].sum(), energies[0].sum())
    expected, rate = success_rate([known.run.success for known in references]), success_rate(successes)
    result = {
        **compared.about,
        "bits_per_weight": rounded(compared.layer_bits, 3),
        "bits_per_weight_files": rounded(compared.file_bits, 3),
        "velocity_snr": round(decibels(signal.sum(), noise.sum()), 2),
        "noise_each": noises,
        "velocity_snr_each": [round(each, 2) for each in ratios],
        "velocity_snr_steps": [round(decibels(*pair), 2) for pair in zip(signal, noise, strict=True)],
        "latent_distance_steps": [round(float(distance), 6) for distance in distances],
        "lost_edits": None if expected is None or rate is None else round(expected - rate, 4),
        "success_each": successes,
    }
    for name, values in each.items():
        digits = METRICS[name].digits + 1
        result[name] = round(float(np.mean(values)), digits)
        result[f"{name}_each"] = [round(value, digits) for value in values]
    return result


def runs_of(
    compared: ComparedBundle, references: Sequence[ReferenceRun], done: Callable[[], object]
) -> Iterator[tuple[ReferenceRun, EditRun, Array]]:
    """Each reference run, batch by batch, with the bundle's own run of the edit, and the energies of its error and of
    the reference's velocity along the reference's trajectory, [2, steps]."""
    pipe, backend = compared.pipe, compared.pipe.backend
    steps = len(references[0].velocities)
    for batch in batches_of(references, compared.batch):
        known = [references[number] for number in batch]
        cases, seeds = [each.case for each in known], [each.seed for each in known]
        free = run_edits(pipe, cases, steps, seeds)
        forced = TeacherForced(
            backend, [np.concatenate(rows) for rows in zip(*(each.velocities for each in known), strict=True)]
        )
        pipe.backend = forced
        run_edits(pipe, cases, steps, seeds)
        pipe.backend = backend
        energies = np.array([list(each.values()) for each in (forced.noise, forced.signal)])
        for row, reference in enumerate(known):
            yield reference, free[row], energies[:, :, row]
            done()


def batches_of(references: Sequence[ReferenceRun], most: int) -> list[list[int]]:
    """The places of edits that may run together: of pictures of one size, at most `most`."""
    alike: dict[object, list[int]] = {}
    for known in references:
        alike.setdefault((known.velocities[0].shape, known.size), []).append(known.number)
    return [group[start : start + most] for group in alike.values() for start in range(0, len(group), most)]


def energy(velocities: Sequence[Array]) -> float:
    return sum(float(np.square(each, dtype=np.float64).sum()) for each in velocities)


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def measure_fidelity(
    reference: Path,
    bundles: Sequence[Path],
    cases: Sequence[Case],
    *,
    steps: int,
    seed: int,
    data: str | None = None,
    peer_names: Sequence[str] = (),
    as_deployed: bool = True,
    pictures: PictureFolder | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Makes all edits with the reference, every bundle, and every peer; `data` names the set that they are of,
    `as_deployed` is that of `all_sides`.

    Raises:
        KontextError: a bundle is of another model, two bundles have the same name, a peer cannot quantize a layer, or
            the reference's runs would not fit into memory.
    """
    check_scipy()
    teacher = Pipeline.load(reference, backend="onnxruntime")
    opened = open_bundles(teacher.bundle, bundles)
    layers = bits_per_weight.common_layers(teacher.bundle, list(opened.values()))
    if peer_names and not any(layers[graph] for graph in bits_per_weight.COUNTED):
        raise KontextError(
            "--peers needs a quantized bundle: peers quantize the layers that at least one bundle quantizes"
        )
    check_memory(teacher.bundle, len(cases), steps)
    metrics, absent = available_metrics()
    entries: dict[str, dict[str, Any]] = {"bundles": {}, "peers": {}, "floors": {}}
    sides = all_sides(teacher.bundle, opened, layers, peer_names, as_deployed=as_deployed)
    runs = (1 + len(sides)) * len(cases)
    with tqdm(total=runs, desc="edits", unit="edit", disable=not progress) as bar:
        references = reference_runs(teacher, cases, steps, seed, bar.update)
        if pictures is not None:
            for number, known in enumerate(references):
                pictures.add(number, SOURCE, known.case.picture())
                pictures.add(number, REFERENCE, known.run.picture)
        # One at a time: a peer's bundle is as large as the reference.
        for side in sides:
            drawn = None if side.group == "floors" else pictures
            with side.open() as compared:
                entries[side.group][side.name] = compare(compared, references, metrics, bar.update, drawn)
    successes = [known.run.success for known in references]
    signals = [float(f"{energy(known.velocities):.6g}") for known in references]
    for entry in (entry for group in entries.values() for entry in group.values()):
        entry["intervals"] = intervals(entry, signals, successes)
    rank({**entries["bundles"], **entries["peers"]})
    return {
        "what": "fidelity",
        "model": teacher.bundle.name,
        "reference": {
            "name": reference.name,
            "success": success_rate(successes),
            "success_each": successes,
            "signal_each": signals,
        },
        "steps": steps,
        "edits": len(references),
        "data": data,
        "keys": [case.key for case in cases],
        "kinds": [case.category for case in cases],
        "prompts": [case.prompt for case in cases],
        "seed": seed,
        **entries,
        "absent_measures": absent,
        "machine": describe_machine(),
    }


def open_bundles(reference: Bundle, paths: Sequence[Path]) -> dict[str, Bundle]:
    """Folder's name → bundle. Raises KontextError for another model's bundle, or a name that occurs twice."""
    opened: dict[str, Bundle] = {}
    for path in paths:
        bundle = Bundle.open(path)
        if bundle.manifest["model"] != reference.manifest["model"]:
            raise KontextError(f"{path} is not an export of {reference.folder}'s model")
        if path.name in opened or path.name in peers.ALL_PEERS:
            raise KontextError(f"two bundles are named {path.name}: rename one's folder")
        opened[path.name] = bundle
    return opened
