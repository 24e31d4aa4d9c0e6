"""Cost of exporting in each number format: wall time and peak memory, cold and warm, and the bundle's size.

Cold is the first export on a machine: its cache of graphs and calibrations is empty. Warm is the next one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..export.cli.source_flags import EMBEDDED
from ..temporary_folder import temporary_folder
from .flags import at_least, parse_names
from .machine import describe_machine, machine_line
from .process_cost import ProcessCost, export_command, run_process, with_cache
from .report import Table, finish, mebibytes
from .timing import Percentiles

FORMATS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
STATES = ("cold", "warm")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        default=EMBEDDED,
        metavar="MODEL",
        help="a diffusers folder (embedded model)",
    )
    parser.add_argument(
        "--formats", default=",".join(FORMATS), metavar="NAME,…", help=f"({','.join(FORMATS)})"
    )
    parser.add_argument("--repeat", type=int, default=3, help="exports in each format, cold and warm (3)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, repeat=1)
    formats = parse_names(arguments.formats, "--formats", FORMATS)
    result = measure_exports(arguments.model, formats, repeat=arguments.repeat, progress=sys.stderr.isatty())
    finish(result, tables(result), footer(result), arguments.json)


def measure_exports(
    checkpoint: Path, formats: Sequence[str], *, repeat: int, progress: bool = False
) -> dict[str, Any]:
    """Exports `checkpoint` `repeat` times in each of `formats`, in a new process with a new cache, and each time once
    more with that cache."""
    results: dict[str, Any] = {}
    # Named as MODEL, the embedded model would not be calibrated.
    model = [] if checkpoint == EMBEDDED else [str(checkpoint)]
    total = len(formats) * len(STATES) * repeat
    with tqdm(total=total, desc="exports", unit="bundle", disable=not progress) as bar:
        for precision in formats:
            costs: dict[str, list[ProcessCost]] = {state: [] for state in STATES}
            size = 0
            for _ in range(repeat):
                with temporary_folder("export") as folder:
                    # Not the user's cache, which may hold graphs and calibrations of earlier exports.
                    command = with_cache(Path(folder) / "cache", export_command())
                    for state in STATES:
                        bundle = Path(folder) / state
                        costs[state].append(
                            run_process([*command, *model, f"--{precision}", "-o", str(bundle)])
                        )
                        size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
                        bar.update()
            results[precision] = {state: figures(each) for state, each in costs.items()}
            results[precision]["bundle_bytes"] = size
    return {"what": "export", "model": checkpoint.name, "formats": results, "machine": describe_machine()}


def figures(costs: Sequence[ProcessCost]) -> dict[str, Any]:
    """What the result has of several exports."""
    return {
        "seconds": Percentiles.of([cost.seconds for cost in costs]).to_json(),
        "peak_bytes": Percentiles.of([float(cost.peak_bytes) for cost in costs]).to_json(),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    rows = [
        [
            precision,
            *(f"{cost[state]['seconds']['median']:.1f}" for state in STATES),
            *(mebibytes(cost[state]["peak_bytes"]["median"]) for state in STATES),
            f"{cost['bundle_bytes'] / 2**20:.1f}",
        ]
        for precision, cost in result["formats"].items()
    ]
    return [
        Table(
            [
                "export",
                *(f"{what}, {state}" for what in ("wall time [s]", "peak memory [MiB]") for state in STATES),
                "bundle [MiB]",
            ],
            rows,
        )
    ]


def footer(result: dict[str, Any]) -> str:
    return machine_line(result["machine"])
