"""Export at FLUX.1 Kontext's full size: a synthetic checkpoint with the real shapes and names, in several formats.

Every export and every check of its bundle is a process of its own, whose time and peak memory are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...child_process import module_command
from ...errors import KontextError
from ...model.config import KontextConfig
from ...temporary_folder import temporary_folder
from ..flags import parse_names
from ..machine import describe_machine, machine_line
from ..process_cost import export_command, run_process, with_cache
from ..report import Table, finish, write_result
from . import synthetic

EXPORTS = {
    "bf16-linked": ["--bf16", "--link-weights"],
    "fp8": ["--fp8", "--fp16"],
    "int4": ["--int4", "--fp16"],
    "bf16": ["--bf16"],
}
"""Name → flags. FP8 and INT4 compute in fp16: on a CPU ONNX Runtime has no bf16 MatMul, so it could not load them."""

CHECKS = {
    "bf16-linked": ["check"],
    "fp8": ["check", "load", "blocks"],
    "int4": ["check", "load", "blocks"],
    "bf16": ["check"],
}
"""Name → the checks of `checks` that its bundle goes through."""

CHUNK = 8 << 20


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="on a disk with enough space (the system's temporary folder)",
    )
    parser.add_argument("--blocks", default="19,38", metavar="D,S", help="double and single blocks (19,38)")
    parser.add_argument(
        "--exports", default=",".join(EXPORTS), metavar="NAME,…", help=f"({','.join(EXPORTS)})"
    )


def run(arguments: argparse.Namespace) -> None:
    def save(
        result: dict[str, Any],
    ) -> None:  # a run takes a quarter of an hour: an interrupted one keeps its results
        if arguments.json is not None:
            write_result(arguments.json, result)

    config = full_size(arguments.blocks)
    names = parse_names(arguments.exports, "--exports", tuple(EXPORTS))
    result = measure_exports(arguments.folder, config, names, sys.stderr.isatty(), save)
    finish(result, tables(result), footer(result), arguments.json)


def measure_exports(
    folder: Path,
    config: KontextConfig,
    exports: list[str],
    progress: bool,
    save: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """Exports and checks in a temporary folder inside `folder`; `save` gets the result so far after each export.

    Raises:
        KontextError: the disk has too little space, or an export fails.
    """
    size = synthetic.checkpoint_bytes(config)
    # The checkpoint, and the largest bundle, which is a copy of it.
    synthetic.check_disk_space(folder, 2 * size)
    result: dict[str, Any] = {
        "what": "fullsize",
        "blocks": [config.transformer.num_double_blocks, config.transformer.num_single_blocks],
        "checkpoint_bytes": size,
        "exports": {},
        "machine": describe_machine(),
    }
    with temporary_folder("fullsize", folder) as temporary:
        checkpoint, bundle = Path(temporary) / synthetic.FULL.name, Path(temporary) / "bundle"
        with tqdm(total=size, desc="checkpoint", unit="B", unit_scale=True, disable=not progress) as bar:
            start = time.perf_counter()
            synthetic.write_checkpoint(checkpoint, config, bar.update)
            result["write_seconds"] = round(time.perf_counter() - start, 1)
        for name in exports:
            if name == "bf16":
                result["copy_seconds"] = round(copy_weights(checkpoint, bundle, size, progress), 1)
                shutil.rmtree(bundle)
            result["exports"][name] = measure_export(checkpoint, bundle, name, progress)
            shutil.rmtree(bundle)
            save(result)
    return result


def measure_export(checkpoint: Path, bundle: Path, name: str, progress: bool) -> dict[str, Any]:
    report_step(f"export: {name}", progress)
    # The first export that computes in a format traces the graphs; later ones take them from this cache.
    command = with_cache(bundle.parent / "cache", export_command())
    drop_page_cache(checkpoint)
    cost = run_process([*command, str(checkpoint), *EXPORTS[name], "-o", str(bundle), "--quiet"])
    entry: dict[str, Any] = {
        "seconds": round(cost.seconds, 1),
        "peak_bytes": cost.peak_bytes,
        "bundle_bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
    }
    for check in CHECKS[name]:
        report_step(f"{check}: {name}", progress)
        entry[check] = run_check(check, bundle)
    return entry


def run_check(check: str, bundle: Path) -> dict[str, Any]:
    """The check's figures, its time and its peak memory; or under "fault" why it failed."""
    with temporary_folder("check") as folder:
        output = Path(folder) / "result.json"
        words = module_command("kontext.bench.fullsize.checks", check, str(bundle))
        # If memory runs out, the kernel shall kill the check rather than anything else.
        script = f'echo 1000 > /proc/self/oom_score_adj; exec "$@" > "{output}"'
        try:
            cost = run_process(["sh", "-c", script, "sh", *words])
        except KontextError as fault:
            return {"fault": str(fault)}
        return json.loads(output.read_text()) | {
            "process_seconds": round(cost.seconds, 1),
            "peak_bytes": cost.peak_bytes,
        }


def copy_weights(source: Path, target: Path, size: int, progress: bool) -> float:
    """Seconds to copy all weight files to the disk, fsync included: the baseline for exports."""
    drop_page_cache(source)
    start = time.perf_counter()
    with tqdm(total=size, desc="plain copy", unit="B", unit_scale=True, disable=not progress) as bar:
        for path in sorted(source.rglob("*.safetensors")):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as reader, copy.open("wb") as writer:
                while block := reader.read(CHUNK):
                    writer.write(block)
                    bar.update(len(block))
                writer.flush()
                os.fsync(writer.fileno())
    return time.perf_counter() - start


def drop_page_cache(folder: Path) -> None:
    """Drops the folder's weight files from the page cache, so that the next reader reads the disk."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report_step(text: str, progress: bool) -> None:
    if progress:
        tqdm.write(text, file=sys.stderr)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


def tables(result: dict[str, Any]) -> list[Table]:
    rows = []
    if "copy_seconds" in result:
        copied, seconds = gigabytes(result["checkpoint_bytes"]), f"{result['copy_seconds']:.0f}"
        rows.append(["plain copy of the checkpoint", seconds, "", copied, "", "", ""])
    for name, entry in result["exports"].items():
        load, probe = entry.get("load", {}), entry.get("blocks", {})
        rows.append(
            [
                name,
                f"{entry['seconds']:.0f}",
                gigabytes(entry["peak_bytes"]),
                gigabytes(entry["bundle_bytes"]),
                outcome(entry["check"], lambda found: f"{found['process_seconds']:.0f} s"),
                outcome(load, lambda found: f"{sum(found['seconds'].values()):.0f} s"),
                outcome(probe, lambda found: f"{found['relative_error']:.1e}"),
            ]
        )
    header = [
        "export",
        "time [s]",
        "peak memory [GB]",
        "bytes [GB]",
        "onnx.checker",
        "loads in",
        "blocks' error",
    ]
    return [Table(header, rows)]


def outcome(found: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
    """A check's cell; empty if it was not run."""
    if not found:
        return ""
    return "failed" if "fault" in found else text(found)


def footer(result: dict[str, Any]) -> str:
    double, single = result["blocks"]
    lines = [f"{double} double and {single} single blocks, all networks, synthetic weights."]
    if "copy_seconds" in result:
        share = result["copy_seconds"] / result["exports"]["bf16"]["seconds"]
        lines.append(
            f"The bf16 export runs at {share:.0%} of the speed of a plain copy, checksums included; its graphs were "
            "traced by bf16-linked, the first export in bf16, and cached."
        )
    return "\n".join([*lines, machine_line(result["machine"])])


def full_size(blocks: str) -> KontextConfig:
    """FLUX.1 Kontext's sizes with `blocks`, double and single, such as 19,38. Raises KontextError for other text."""
    counts = blocks.split(",")
    if len(counts) != 2 or not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise KontextError(f"--blocks takes two numbers, such as 19,38, not {blocks!r}")
    transformer = dataclasses.replace(
        synthetic.FULL.transformer, num_double_blocks=int(counts[0]), num_single_blocks=int(counts[1])
    )
    return dataclasses.replace(synthetic.FULL, transformer=transformer)
