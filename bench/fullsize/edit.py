"""One whole edit on a CPU through OpenVINO and ONNX Runtime, stage by stage: seconds, peak memory, share of the
processor's matrix rate, and the error of two steps' velocity against PyTorch in fp32.

Meant for bundles of FLUX.1 Kontext's size: `kontext-bench synthetic FOLDER`, `kontext-export FOLDER --fp32 --int4 …`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...child_process import module_command
from ...errors import KontextError
from ...runtime.bundle import Bundle
from ...runtime.units import gigabytes
from ...temporary_folder import temporary_folder
from ..flags import parse_names
from ..limits import MATRIX, matrix_rates, step_flops
from ..machine import describe_machine, machine_line
from ..openvino_sides import OPENVINO
from ..process_cost import run_process
from ..report import Table, finish, write_result

BACKENDS = (*OPENVINO, "onnxruntime")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--backends",
        default="openvino-bf16,onnxruntime",
        metavar="NAME,…",
        help=f"of {', '.join(BACKENDS)} (openvino-bf16,onnxruntime)",
    )
    parser.add_argument(
        "--size", default="512x512", metavar="WxH", help="of the picture and its reference (512x512)"
    )
    parser.add_argument("--steps", type=int, default=4, help="(4)")
    parser.add_argument("--reference", action="store_true", help="compare two steps with PyTorch; minutes")


def run(arguments: argparse.Namespace) -> None:
    bundle = Bundle.open(arguments.bundle)
    if arguments.steps < 1:
        raise KontextError(f"--steps must be 1 or more, not {arguments.steps}")
    width, cross, height = arguments.size.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise KontextError(f"--size takes WIDTHxHEIGHT, such as 512x512, not {arguments.size!r}")
    backends = parse_names(arguments.backends, "--backends", BACKENDS)
    result: dict[str, Any] = {
        "what": "fullsize edit",
        "model": bundle.name,
        "precision": bundle.manifest["precision"]["networks"]["transformer"],
        "weights": bundle.manifest["precision"].get("weights", ""),
        "weight_bytes": bundle.weight_bytes,
        "size": arguments.size,
        "steps": arguments.steps,
        "step_flops": step_flops(bundle, int(width), int(height)),
        "matrix_rates": matrix_rates(),
        "backends": {},
        "machine": describe_machine(),
    }
    for backend in backends:
        result["backends"][backend] = measure(bundle, backend, arguments)
        if arguments.json is not None:  # a run may take half an hour: an interrupted one keeps its results
            write_result(arguments.json, result)
    finish(result, tables(result), footer(result), arguments.json)


def measure(bundle: Bundle, backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with temporary_folder("edit") as folder:
        record = str(Path(folder) / "steps.npz")
        words = [backend, arguments.size, str(arguments.steps), record]
        measured = run_child(["edit", str(bundle.folder), *words])
        measured["peak_bytes"] = max(measured["peaks"].values())  # the process's own was reset for each stage
        if arguments.reference:
            measured["reference"] = run_child(["reference", str(bundle.folder), record])
    return measured


def run_child(words: Sequence[str]) -> dict[str, Any]:
    """The JSON that `edit_child` prints, and the process's peak memory, in a process of its own."""
    with temporary_folder("edit") as folder:
        output = Path(folder) / "result.json"
        command = module_command("kontext.bench.fullsize.edit_child", *words)
        cost = run_process(["sh", "-c", f'exec "$@" > "{output}"', "sh", *command])
        return {**json.loads(output.read_text()), "peak_bytes": cost.peak_bytes}


def tables(result: dict[str, Any]) -> list[Table]:
    """A row for each stage, three columns for each backend; then a row for each backend."""
    backends = result["backends"]
    stages = list(next(iter(backends.values()))["stages"])
    header = ["stage", *(f"{name}, {what}" for name in backends for what in ("s", "peak", "held"))]
    rows = []
    for stage in stages:
        row = [f"{stage} (a step)" if stage == "transformer" else stage]
        for entry in backends.values():
            seconds = entry["stages"][stage]
            row.append(f"{typical(stage, seconds):.2f}")
            row += [gigabytes(entry[kind][stage]) for kind in ("peaks", "anonymous")]
        rows.append(row)
    whole = [
        [
            name,
            f"{entry['seconds']:.0f}",
            gigabytes(entry["peak_bytes"]),
            f"{result['step_flops'] / typical('transformer', entry['stages']['transformer']) / 1e12:.2f}",
            ", ".join(f"{error:.2e}" for error in entry.get("reference", {}).get("relative_errors", []))
            or "-",
            "yes" if entry["finite"] else "NO",
        ]
        for name, entry in backends.items()
    ]
    return [
        Table(header, rows),
        Table(("whole edit", "s", "peak", "TFLOP/s of a step", "error of the velocity", "all finite"), whole),
    ]


def typical(stage: str, seconds: list[float]) -> float:
    """The sum over a stage's runs; of the transformer the median step, without the first, which also loads."""
    if stage != "transformer":
        return sum(seconds)
    later = sorted(seconds[1:] or seconds)
    return later[len(later) // 2]


def footer(result: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {name}" for name, rate in result["matrix_rates"].items())
    return (
        f"{result['model']}, {result['weights']} weights of {gigabytes(result['weight_bytes'])} computing in "
        f"{result['precision']}, {result['size']} with one reference, {result['steps']} steps, cold. A step takes "
        f"{result['step_flops'] / 1e12:.1f} TFLOP; the processor's products of {MATRIX}² matrices ran at {rates}. "
        "Peaks count the resident pages of the weights' files, which the system can take back; what is held does not.\n"
        + machine_line(result["machine"])
    )
