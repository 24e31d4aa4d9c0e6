"""FLUX.1 Kontext at its full size on this machine: `python -m kontext.bench.fullsize.exporting --json FILE`.

Writes a synthetic checkpoint with the real shapes and names, exports it in several formats, and checks what came out.
Time, bytes and peak memory of each step are of a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import KontextError
from ...model.config import KontextConfig
from ..command_line import exit_code, module_parser, show
from ..inputs import command, with_cache
from ..machine import describe, one_line
from ..measure import run_process
from ..report import Table, write_json
from . import synthetic

EXPORTS = {
    "bf16-linked": ["--bf16", "--link-weights"],
    "fp8": ["--fp8", "--fp16"],
    "int4": ["--int4", "--fp16"],
    "bf16": ["--bf16"],
}
"""Name → flags. FP8 and INT4 compute in fp16, since ONNX Runtime has no bf16 MatMul on a CPU to load them with."""

CHECKS = {
    "bf16-linked": ["check"],
    "fp8": ["check", "load", "blocks"],
    "int4": ["check", "load", "blocks"],
    "bf16": ["check"],
}

CHUNK = 8 << 20


def measure(
    folder: Path,
    config: KontextConfig,
    exports: list[str],
    progress: bool,
    save: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """Everything, in a temporary folder inside `folder`; `save` is given what there is after each export."""
    size = synthetic.size_of(config)
    # The checkpoint and the largest thing beside it: a copy of it.
    synthetic.check_room(folder, 2 * size)
    result: dict[str, Any] = {
        "what": "fullsize",
        "blocks": [config.transformer.num_double_blocks, config.transformer.num_single_blocks],
        "checkpoint_bytes": size,
        "exports": {},
        "machine": describe(),
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix="kontext-fullsize-") as temporary:
        checkpoint, bundle = Path(temporary) / synthetic.FULL.name, Path(temporary) / "bundle"
        with tqdm(total=size, desc="checkpoint", unit="B", unit_scale=True, disable=not progress) as bar:
            start = time.perf_counter()
            synthetic.write(checkpoint, config, bar.update)
            result["write_seconds"] = round(time.perf_counter() - start, 1)
        for name in exports:
            if name == "bf16":
                result["copy_seconds"] = round(copy_weights(checkpoint, bundle, size, progress), 1)
                shutil.rmtree(bundle)
            result["exports"][name] = export(checkpoint, bundle, name, progress)
            shutil.rmtree(bundle)
            save(result)
    return result


def export(checkpoint: Path, bundle: Path, name: str, progress: bool) -> dict[str, Any]:
    say(f"export: {name}", progress)
    # Graphs are traced by the first export in a number format, and kept for the next.
    words = with_cache(bundle.parent / "cache", command("kontext-export", "kontext.export.cli.main"))
    forget(checkpoint)
    cost = run_process([*words, str(checkpoint), *EXPORTS[name], "-o", str(bundle), "--quiet"])
    entry: dict[str, Any] = {
        "seconds": round(cost.seconds, 1),
        "peak_bytes": cost.peak_bytes,
        "bundle_bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
    }
    for check in CHECKS[name]:
        say(f"{check}: {name}", progress)
        entry[check] = run_check(check, bundle)
    return entry


def run_check(check: str, bundle: Path) -> dict[str, Any]:
    """The check's own figures, with its time and peak memory; or why it could not be made."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        words = [sys.executable, "-m", "kontext.bench.fullsize.checks", check, str(bundle)]
        # Where memory runs out, it is the check that the system should stop, and nothing else.
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
    """Seconds of a plain copy of all weight files to the disk, synced: what an export is held against."""
    forget(source)
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


def forget(folder: Path) -> None:
    """Drops the folder's files from the page cache, so that every reader finds them on the disk."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def say(text: str, progress: bool) -> None:
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
    """A check's cell: empty where it was not made."""
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
            "traced before, by the first export of this architecture in bf16, which is bf16-linked."
        )
    return "\n".join([*lines, one_line(result["machine"])])


def run(options: argparse.Namespace) -> None:
    def save(result: dict[str, Any]) -> None:  # it takes a quarter of an hour: what is measured is kept
        if options.json is not None:
            write_json(options.json, result)

    config = full_size(options.blocks)
    names = options.exports.split(",")
    if unknown := [name for name in names if name not in EXPORTS]:
        raise KontextError(f"--exports takes {', '.join(map(repr, EXPORTS))}, not {unknown[0]!r}")
    result = measure(options.folder, config, names, sys.stderr.isatty(), save)
    show(tables(result), footer(result))


def main(arguments: list[str] | None = None) -> int:
    parser = module_parser("fullsize", __doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk with room"
    )
    parser.add_argument("--blocks", default="19,38", metavar="D,S", help="double and single blocks (19,38)")
    parser.add_argument("--exports", default=",".join(EXPORTS), help="which, by name")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


def full_size(blocks: str) -> KontextConfig:
    """FLUX.1 Kontext's own sizes, with fewer blocks where asked for."""
    counts = blocks.split(",")
    if len(counts) != 2 or not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise KontextError(f"--blocks takes two numbers, such as 19,38, not {blocks!r}")
    transformer = dataclasses.replace(
        synthetic.FULL.transformer, num_double_blocks=int(counts[0]), num_single_blocks=int(counts[1])
    )
    return dataclasses.replace(synthetic.FULL, transformer=transformer)


if __name__ == "__main__":
    sys.exit(main())
