"""What a first export costs: wall time, peak memory and the bundle's size, for each number format."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .inputs import command, with_cache
from .machine import describe, one_line
from .measure import Summary, run_process
from .report import Table, mebibytes


def measure(
    checkpoint: Path, formats: Sequence[str], *, repeat: int, progress: bool = False
) -> dict[str, Any]:
    """Exports `checkpoint` in each of `formats` `repeat` times, each in a process and a folder of its own."""
    results: dict[str, Any] = {}
    with tqdm(total=len(formats) * repeat, desc="exports", unit="bundle", disable=not progress) as bar:
        for precision in formats:
            costs, size = [], 0
            for _ in range(repeat):
                with tempfile.TemporaryDirectory() as folder:
                    bundle = Path(folder) / "bundle"
                    # Graphs and calibrations that other exports have kept would be taken from there.
                    words = with_cache(
                        Path(folder) / "cache", command("kontext-export", "kontext.export.cli.main")
                    )
                    costs.append(run_process([*words, str(checkpoint), f"--{precision}", "-o", str(bundle)]))
                    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
                bar.update()
            results[precision] = {
                "seconds": Summary.of([cost.seconds for cost in costs]).to_json(),
                "peak_bytes": Summary.of([float(cost.peak_bytes) for cost in costs]).to_json(),
                "bundle_bytes": size,
            }
    return {"what": "export", "model": checkpoint.name, "formats": results, "machine": describe()}


def tables(result: dict[str, Any]) -> list[Table]:
    rows = [
        [
            precision,
            f"{cost['seconds']['median']:.1f}",
            mebibytes(cost["peak_bytes"]["median"]),
            f"{cost['bundle_bytes'] / 2**20:.1f}",
        ]
        for precision, cost in result["formats"].items()
    ]
    return [Table(["export", "wall time [s]", "peak memory [MiB]", "bundle [MiB]"], rows)]


def footer(result: dict[str, Any]) -> str:
    return one_line(result["machine"])
