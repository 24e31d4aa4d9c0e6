"""Fidelity of each quantization method on the embedded model: rounding, error feedback, branches, inputs, centring.

Exports the model once per variant and compares all of them with the fp32 export in one run of the fidelity benchmark.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import KontextError
from ...temporary_folder import temporary_folder
from ..cases import scene_cases
from ..flags import add_seed_flag, at_least
from ..report import Table, finish
from . import tables as fidelity_tables
from .benchmark import measure_fidelity

VARIANTS: dict[str, tuple[str, list[str]]] = {
    "fp8-nearest": ("rounded to the nearest", ["--fp8", "--calibrate", "none"]),
    "fp8-feedback": ("error feedback", ["--fp8", "--weight-only"]),
    "fp8-inputs": ("error feedback, static E4M3 inputs", ["--recipe", "fp8"]),
    "fp8": ("the same, centred (`--fp8`)", ["--fp8"]),
    "fp8-attention": ("the same, FP8 attention", ["--fp8", "--fp8-attention"]),
    "int8-nearest": ("rounded to the nearest", ["--int8", "--weight-only", "--calibrate", "none"]),
    "int8-feedback": ("error feedback", ["--int8", "--weight-only"]),
    "int8-inputs": ("error feedback, INT8 inputs", ["--recipe", "int8"]),
    "int8": ("the same, centred (`--int8`)", ["--int8"]),
    "int4-nearest": ("scale search", ["--int4", "--rank", "0", "--calibrate", "none"]),
    "int4-svd16": (
        "scale search, branch of the weight, rank 16",
        ["--int4", "--rank", "16", "--calibrate", "none"],
    ),
    "int4": ("scale search, error feedback (`--int4`)", ["--int4"]),
    "int4-feedback16": ("the same, low-rank correction, rank 16", ["--int4", "--rank", "16"]),
    "nf4-nearest": ("rounded to the nearest", ["--nf4", "--calibrate", "none"]),
    "nf4": ("error feedback (`--nf4`)", ["--nf4"]),
}
"""Name → (the method's title in the table, flags of kontext-export); `--recipe FORMAT` stands for a recipe file."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=28, help="sampler steps (28)")
    parser.add_argument("-n", "--count", type=int, default=2, help="edits of each kind (2)")
    add_seed_flag(parser, "seed of the scenes and of the noise (0)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, steps=1, count=1)
    result = measure_methods(arguments.steps, arguments.count, arguments.seed, sys.stderr.isatty())
    finish(result, tables(result), footer(result), arguments.json)


def measure_methods(steps: int, count: int, seed: int, progress: bool) -> dict[str, Any]:
    """Exports every variant into a temporary folder and compares it with the fp32 export."""
    from ...export.cli.main import main as export

    with temporary_folder("methods") as name:
        folder = Path(name)
        wanted = {"fp32": ["--fp32"], **{key: flags for key, (_, flags) in VARIANTS.items()}}
        for key, flags in tqdm(wanted.items(), desc="exports", disable=not progress):
            if flags[0] == "--recipe":
                flags = ["--recipe", str(write_uncentred_recipe(folder, flags[1]))]
            if export(["-o", str(folder / key), "--quiet", *flags]) != 0:
                raise KontextError(f"the export {key} failed")
        bundles = [folder / key for key in VARIANTS]
        result = measure_fidelity(
            folder / "fp32",
            bundles,
            scene_cases(count, seed),
            steps=steps,
            seed=seed,
            as_deployed=False,
            progress=progress,
        )
    return result | {"what": "methods"}


def write_uncentred_recipe(folder: Path, format: str) -> Path:
    """A recipe file for quantized weights and inputs, as with `--fp8` or `--int8` but without centring."""
    network = "transformer" if format == "fp8" else "*"
    rules = [{"network": network, "format": format, "activations": format}, {"format": format}]
    path = folder / f"{format}.json"
    path.write_text(json.dumps({"rules": rules}), encoding="utf-8")
    return path


def tables(result: dict[str, Any]) -> list[Table]:
    rows = [
        [
            entry["precision"],
            entry.get("scheme", fidelity_tables.UNKNOWN),
            VARIANTS[name][0],
            fidelity_tables.place(entry),
            fidelity_tables.figure(entry, "velocity_snr", 1),
            f"{min(entry['velocity_snr_steps']):.1f}",
            fidelity_tables.figure(entry, "psnr", 1),
            fidelity_tables.lost(entry),
        ]
        for name, entry in result["bundles"].items()
    ]
    return [
        Table(
            [
                *("weights", "class", "method", "place, SNR / PSNR"),
                *("velocity SNR [dB]", "worst step", "PSNR [dB]", "lost edits [points]"),
            ],
            rows,
        )
    ]


def footer(result: dict[str, Any]) -> str:
    return fidelity_tables.footer(result)
