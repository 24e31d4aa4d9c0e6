"""What the torch backend's approximations cost: `python -m kontext.bench.fidelity.approximations [BUNDLE] --json FILE`.

The same edits with and without each, on a CPU: steps left out, pictures against the exact run's, edits that the judge
accepts. Beside it, from shapes alone, the work of each kind of step at FLUX.1 Kontext's size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...decibels import psnr
from ...errors import KontextError
from ...model.config import TransformerConfig
from ...runtime.bundle import Bundle
from ...runtime.pipeline import Pipeline
from ...tiny.edits import KINDS, Edit
from ..command_line import exit_code, module_parser, show
from ..edits import held_out
from ..machine import describe, one_line
from ..report import Table, write_json
from .compare import Run, free_run


@dataclass(frozen=True)
class Setting:
    """The torch backend's options, under the flags that ask for them."""

    cache: float | None = None
    reuse_reference: int | None = None

    @property
    def flags(self) -> str:
        words = [] if self.cache is None else [f"--cache {self.cache:g}"]
        words += [] if self.reuse_reference is None else [f"--reuse-reference {self.reuse_reference}"]
        return " ".join(words)


SETTINGS = (
    *(Setting(cache=share) for share in (0.05, 0.1, 0.2)),
    *(Setting(reuse_reference=steps) for steps in (2, 4, 28)),
    Setting(0.1, 2),
)


def measure(
    bundle: Path | None,
    *,
    steps: int,
    count: int,
    seed: int,
    settings: Sequence[Setting] = SETTINGS,
    progress: bool = False,
) -> dict[str, Any]:
    """Runs `count` held-out edits of each kind exactly and with each setting; by the embedded model if by no bundle."""
    if bundle is None:
        from ...export.cli.main import main as export

        with tempfile.TemporaryDirectory(prefix="kontext-approximations-") as folder:
            if export(["-o", f"{folder}/fp32", "--fp32", "--quiet"]) != 0:
                raise KontextError("the embedded model could not be exported")
            return measure(
                Path(folder) / "fp32",
                steps=steps,
                count=count,
                seed=seed,
                settings=settings,
                progress=progress,
            )
    opened = Bundle.open(bundle)
    edits = [edit for kind in KINDS for edit in held_out(kind, count, seed)]
    with tqdm(total=len(edits) * (1 + len(settings)), unit="edit", disable=not progress) as bar:
        exact = run_all(opened, Setting(), edits, steps, seed, bar)
        entries = []
        for setting in settings:
            runs = run_all(opened, setting, edits, steps, seed, bar)
            entries.append(compare(setting, runs, exact))
    return {
        "what": "approximations",
        "model": opened.name,
        "precision": opened.manifest["precision"]["weights"],
        "steps": steps,
        "edits": len(edits),
        "seed": seed,
        "exact_success": sum(run.success for run in exact.runs),
        "settings": entries,
        "work": work(),
        "machine": describe(),
    }


@dataclass(frozen=True)
class Runs:
    """All edits with one setting, and the steps that ran every block, with the reference in it or not."""

    runs: list[Run]
    computed: int
    with_reference: int


def run_all(bundle: Bundle, setting: Setting, edits: Sequence[Edit], steps: int, seed: int, bar: Any) -> Runs:
    # Imported here: the tables are made without PyTorch.
    from ...runtime.backends.torch.backend import Options, TorchBackend

    backend = TorchBackend(
        bundle, "cpu", Options(cache=setting.cache, reuse_reference=setting.reuse_reference)
    )
    pipe = Pipeline(bundle, backend)
    runs = []
    for number, edit in enumerate(edits):
        runs.append(free_run(pipe, edit, steps, seed + number))
        bar.update()
    return Runs(runs, backend.report.computed, backend.report.with_reference)


def compare(setting: Setting, found: Runs, exact: Runs) -> dict[str, Any]:
    each = [psnr(ours.picture, theirs.picture) for ours, theirs in zip(found.runs, exact.runs, strict=True)]
    return {
        "flags": setting.flags,
        "computed_steps": found.computed,
        "reference_steps": found.with_reference,
        "psnr": round(float(np.mean(each)), 2),
        "psnr_worst": round(min(each), 2),
        "psnr_each": [round(value, 2) for value in each],
        "success": sum(run.success for run in found.runs),
    }


# -- from shapes --

TARGET, TEXT = 4096, 512
"""Tokens of a 1024x1024 picture and of the text."""


def step_work(config: TransformerConfig, blocks: int, queries: int, keys: int) -> tuple[float, float]:
    """FLOPs of the linears and of attention in `blocks` of either kind (both have as many: in double blocks qkv, proj
    and the MLP, in single ones the same in two linears), of `queries` tokens that attend to `keys`."""
    hidden = config.hidden_size
    linears = 2 * queries * (4 * hidden**2 + 2 * hidden * config.mlp_size)
    return blocks * linears, blocks * 4 * queries * keys * hidden


def work() -> list[dict[str, Any]]:
    """Each kind of step of a 1024x1024 edit by FLUX.1 Kontext, with one and with two references of that size."""
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
        f"{result['seed']}, torch backend on a CPU.\n{one_line(result['machine'])}"
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
    return "Counted from the shapes of a 1024x1024 edit by FLUX.1 Kontext [dev] in bf16, references of that size too."


def run(options: argparse.Namespace) -> None:
    result = measure(
        options.bundle,
        steps=options.steps,
        count=options.count,
        seed=options.seed,
        progress=sys.stderr.isatty(),
    )
    if options.json is not None:
        write_json(options.json, result)
    show([*tables(result), *work_tables(result)], f"{work_footer(result)}\n{footer(result)}")


def main(arguments: list[str] | None = None) -> int:
    parser = module_parser("approximations", __doc__)
    parser.add_argument("bundle", type=Path, nargs="?", help="default: the embedded model, exported for this")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("-n", "--count", type=int, default=4, help="edits of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
