"""Fidelity and saved work of the torch backend's approximations, --cache and --reuse-reference.

The same edits with and without each, on a CPU: steps skipped, pictures compared with the exact run's, edits that the
judge accepts; and the work of each kind of step at FLUX.1 Kontext's size, computed from shapes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...decibels import psnr
from ...errors import KontextError
from ...model.config import TransformerConfig
from ...runtime.backends.options import TorchOptions
from ...runtime.bundle import Bundle
from ...runtime.pipeline import Pipeline
from ...temporary_folder import temporary_folder
from ..cases import Case, scene_cases
from ..flags import add_seed_flag, at_least
from ..limits import step_work
from ..machine import describe_machine, machine_line
from ..number_formats import formats_of
from ..report import Table, finish
from .edit_runs import EditRun, run_edit


@dataclass(frozen=True)
class Setting:
    """The torch backend's options for approximations, None where one is off."""

    cache: float | None = None
    reuse_reference: int | None = None

    @property
    def flags(self) -> str:
        """As kontext-edit takes them."""
        words = [] if self.cache is None else [f"--cache {self.cache:g}"]
        words += [] if self.reuse_reference is None else [f"--reuse-reference {self.reuse_reference}"]
        return " ".join(words)


SETTINGS = (
    *(Setting(cache=share) for share in (0.05, 0.1, 0.2)),
    *(Setting(reuse_reference=steps) for steps in (2, 4, 28)),
    Setting(0.1, 2),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="(an fp32 export of the embedded model)"
    )
    parser.add_argument("--steps", type=int, default=28, help="sampler steps (28)")
    parser.add_argument("-n", "--count", type=int, default=4, help="edits of each kind (4)")
    add_seed_flag(parser, "seed of the scenes and of the noise (0)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, steps=1, count=1)
    result = measure_approximations(
        arguments.bundle,
        steps=arguments.steps,
        count=arguments.count,
        seed=arguments.seed,
        progress=sys.stderr.isatty(),
    )
    shown = [*tables(result), *work_tables(result)]
    finish(result, shown, f"{work_footer(result)}\n{footer(result)}", arguments.json)


def measure_approximations(
    bundle: Path | None,
    *,
    steps: int,
    count: int,
    seed: int,
    settings: Sequence[Setting] = SETTINGS,
    progress: bool = False,
) -> dict[str, Any]:
    """Runs `count` held-out edits of each kind exactly and with each setting; None exports the embedded model."""
    if bundle is None:
        from ...export.cli.main import main as export

        with temporary_folder("approximations") as folder:
            if export(["-o", f"{folder}/fp32", "--fp32", "--quiet"]) != 0:
                raise KontextError("the embedded model could not be exported")
            return measure_approximations(
                Path(folder) / "fp32",
                steps=steps,
                count=count,
                seed=seed,
                settings=settings,
                progress=progress,
            )
    opened = Bundle.open(bundle)
    edits = scene_cases(count, seed)
    with tqdm(total=len(edits) * (1 + len(settings)), unit="edit", disable=not progress) as bar:
        exact = run_all(opened, Setting(), edits, steps, seed, bar)
        entries = []
        for setting in settings:
            runs = run_all(opened, setting, edits, steps, seed, bar)
            entries.append(compare(setting, runs, exact))
    return {
        "what": "approximations",
        "model": opened.name,
        **formats_of(opened),
        "steps": steps,
        "edits": len(edits),
        "keys": [edit.key for edit in edits],
        "seed": seed,
        "exact_success": sum(run.success for run in exact.runs),
        "settings": entries,
        "work": work(),
        "machine": describe_machine(),
    }


@dataclass(frozen=True)
class SettingRuns:
    """All edits with one setting."""

    runs: list[EditRun]
    computed: int
    """Steps that ran every block."""
    with_reference: int
    """Those of them that computed the reference's tokens too."""


def run_all(
    bundle: Bundle, setting: Setting, edits: Sequence[Case], steps: int, seed: int, bar: Any
) -> SettingRuns:
    # Imported here so that tables can be made without PyTorch.
    from ...runtime.backends.torch.backend import TorchBackend

    options = TorchOptions(cache=setting.cache, reuse_reference=setting.reuse_reference)
    backend = TorchBackend(bundle, "cpu", options)
    pipe = Pipeline(bundle, backend)
    runs = []
    for number, edit in enumerate(edits):
        runs.append(run_edit(pipe, edit, steps, seed + number))
        bar.update()
    return SettingRuns(runs, backend.step_counts.computed, backend.step_counts.with_reference)


def compare(setting: Setting, found: SettingRuns, exact: SettingRuns) -> dict[str, Any]:
    each = [psnr(ours.picture, theirs.picture) for ours, theirs in zip(found.runs, exact.runs, strict=True)]
    return {
        "flags": setting.flags,
        "computed_steps": found.computed,
        "reference_steps": found.with_reference,
        "psnr": round(float(np.mean(each)), 2),
        "psnr_worst": round(min(each), 2),
        "psnr_each": [round(value, 2) for value in each],
        "success": sum(run.success for run in found.runs),
        "success_each": [run.success for run in found.runs],
    }


# -- work, from shapes --

TARGET, TEXT = 4096, 512
"""Tokens of a 1024x1024 picture, and of the text."""


def work() -> list[dict[str, Any]]:
    """The work of each kind of step of a 1024x1024 edit by FLUX.1 Kontext, with one and two references of that size."""
    config = TransformerConfig()
    depth = config.num_double_blocks + config.num_single_blocks
    entries = []
    for references in (1, 2):
        kept = references * TARGET
        tokens = TEXT + TARGET + kept
        kinds = (
            ("exact", depth, tokens, 0),
            ("--reuse-reference, between", depth, TEXT + TARGET, depth * kept * 2 * config.hidden_size * 2),
            ("--cache, skipped", 1, tokens, (tokens + 3 * TARGET) * config.hidden_size * 2),
        )
        for name, blocks, queries, held in kinds:
            linears, attention = step_work(config, blocks, queries, tokens)
            entries.append(
                {
                    "references": references,
                    "step": name,
                    "blocks": blocks,
                    "tokens": queries,
                    "linears": linears,
                    "attention": attention,
                    "kept_bytes": held,
                }
            )
    return entries


def tables(result: dict[str, Any]) -> list[Table]:
    steps, edits = result["steps"] * result["edits"], result["edits"]
    rows = [["exact", "0%", "100%", "-", "-", f"{result['exact_success'] / edits:.0%}"]]
    for entry in result["settings"]:
        rows.append(
            [
                f"`{entry['flags']}`",
                f"{1 - entry['computed_steps'] / steps:.0%}",
                f"{entry['reference_steps'] / steps:.0%}",
                f"{entry['psnr']:.1f}",
                f"{entry['psnr_worst']:.1f}",
                f"{entry['success'] / edits:.0%}",
            ]
        )
    header = [
        "flags",
        "steps skipped after block 1",
        "steps with the reference in all blocks",
        "PSNR to exact [dB]",
        "worst",
        "edits that succeed",
    ]
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    return (
        f"{result['model']}, {result['precision']} weights, {result['steps']} steps, {result['edits']} edits, seed "
        f"{result['seed']}, torch backend on a CPU.\n{machine_line(result['machine'])}"
    )


def work_tables(result: dict[str, Any]) -> list[Table]:
    exact = {
        entry["references"]: entry["linears"] + entry["attention"]
        for entry in result["work"]
        if entry["step"] == "exact"
    }
    rows = [
        [
            entry["step"],
            str(entry["references"]),
            str(entry["blocks"]),
            str(entry["tokens"]),
            f"{entry['linears'] / 1e12:.1f}",
            f"{entry['attention'] / 1e12:.1f}",
            f"{(entry['linears'] + entry['attention']) / exact[entry['references']]:.0%}",
            f"{entry['kept_bytes'] / 1e9:.2f}",
        ]
        for entry in result["work"]
    ]
    header = [
        "step",
        "references",
        "blocks",
        "tokens",
        "linears [TFLOP]",
        "attention [TFLOP]",
        "of exact",
        "kept [GB]",
    ]
    return [Table(header, rows)]


def work_footer(_: dict[str, Any]) -> str:
    return "Computed from the shapes of a 1024x1024 edit by FLUX.1 Kontext [dev] in bf16 with references of that size."
