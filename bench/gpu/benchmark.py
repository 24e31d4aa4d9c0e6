"""Triton kernels and the full-size step on this machine's GPU, in under nine minutes.

Correctness of every kernel on the device, the device's limits, kernel timings beside PyTorch's and cuBLAS's, then one
denoising step of the 12 B transformer with random weights: eager, compiled, in flux-fast's recipe, and on our kernels
in bf16, FP8, INT4 and INT4 with FP8 inputs. The result is saved after every section (bench/results/<gpu>.json unless
--json names another file), so that an interrupted run keeps it. Without a GPU the same code runs at small sizes.
"""

from __future__ import annotations

import argparse
import gc
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import KontextError
from ...kernels.autotune import MEASURED
from ...kernels.launch import triton
from ..machine import describe_machine, machine_line
from ..report import Table, write_result
from . import kernels
from . import step as gpu_step
from .timing import DeviceTimer, device_limits

RESULTS = Path(__file__).resolve().parents[1] / "results"
BUDGET = 500
"""Seconds after which no further section starts."""

SIZES = {"1024x1024": (4096, 4096), "768x768": (2304, 4096)}
"""Output size → target tokens, and reference tokens of a 1024² reference."""

GOALS = {
    "attention fp8 over the best SDPA": 1.4,
    "attention 16-bit over the best SDPA": 0.9,
    "worst elementwise pass, share of copy": 0.85,
    "step fp8 over eager": 2.2,
    "step fp8 over the compiled FP8 recipe": 1.0,
    "step int4 over bf16": 1.0,
}
"""Ratios that the kernels were designed to reach on an H100; higher is better."""

CORRECTNESS = ("correctness", "correctness of the step")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(auto)")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET,
        metavar="SECONDS",
        help=f"start no section after this ({BUDGET})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 if a kernel is wrong on this device, else 0."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise KontextError("--device cuda: PyTorch finds no CUDA device")
    device = torch.device("cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu")
    path = arguments.json
    if path is None and device.type == "cuda":
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
        path = RESULTS / f"{name}.json"
    with torch.inference_mode():
        result = measure_device(device, Sections(path, arguments.budget))
    for table in tables(result):
        print(f"\n{table.text()}")
    print(f"\n{footer(result)}")
    wrong = [
        name
        for section in CORRECTNESS
        for name, each in result.get(section, {}).items()
        if not each["passed"]
    ]
    return 1 if wrong or "correctness" in result["skipped"] else 0


class Sections:
    """Runs the benchmark's sections; prints their progress, and saves the results after each."""

    def __init__(self, path: Path | None, budget: float) -> None:
        self.path = path
        self.budget = budget
        self.begin = time.perf_counter()
        self.results: dict[str, Any] = {"what": "gpu", "skipped": {}, "seconds": {}}
        self.results["machine"] = describe_machine()

    def run(self, name: str, section: Callable[[], Any]) -> Any:
        """Runs one section and returns its result; a section that raises is recorded as skipped, and returns None."""
        elapsed = time.perf_counter() - self.begin
        if elapsed > self.budget:
            self.results["skipped"][name] = f"out of time after {elapsed:.0f} s"
            print(f"[{elapsed:4.0f} s] {name}: skipped, out of time", flush=True)
            return None
        print(f"[{elapsed:4.0f} s] {name}", flush=True)
        value = None
        try:
            value = section()
        except Exception as fault:  # CUDA, Triton and cuBLAS raise errors of many types
            lines = str(fault).strip().splitlines()
            self.results["skipped"][name] = f"{type(fault).__name__}: {lines[0] if lines else ''}"
            print(f"         {self.results['skipped'][name]}", flush=True)
        else:
            self.results[name] = value
        # Networks contain reference cycles; uncollected ones would count towards the next section's peak.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        self.results["seconds"][name] = round(time.perf_counter() - self.begin - elapsed, 1)
        self.save()
        return value

    def save(self) -> None:
        if self.path is not None:
            write_result(self.path, rounded(self.results))


def rounded(value: Any) -> Any:
    """Floats to five significant digits, the rest is noise; infinities and NaN, which JSON lacks, to None."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value


def measure_device(device: torch.device, sections: Sections) -> dict[str, Any]:
    """Runs all sections, the most important ones first; small sizes on a CPU."""
    large = device.type == "cuda"
    timer = DeviceTimer(device, repeats=20 if large else 2)
    shape = kernels.Shape() if large else kernels.SMALL
    dtype = shape.dtype
    sections.results["machine"]["triton"] = triton.__version__ if triton is not None else None
    torch.manual_seed(0)
    found = sections.run("limits", lambda: device_limits(timer, 8192 if large else 64)) or {}
    small = kernels.Shape(hidden=1024, heads=8, mlp=2048, text=77, image=950) if large else shape
    sections.run("correctness", lambda: kernels.correctness(small, device))
    config = gpu_step.FULL if large else gpu_step.SMALL
    sections.run("correctness of the step", lambda: gpu_step.shallow_errors(device, dtype, config))
    sections.run("attention", lambda: kernels.attentions(shape, timer))
    copy_gb_s = found.get("copy_gb_s", float("nan"))
    sections.run("passes", lambda: kernels.passes(shape, timer, copy_gb_s))
    sections.run("unpacking", lambda: kernels.unpackings(shape, timer, copy_gb_s))
    sections.run("products", lambda: kernels.products(shape, timer))
    measure_steps(device, sections, timer, config, dtype, large)
    sections.results["chosen"] = MEASURED
    sections.results["ratios"] = ratios(sections.results)
    sections.results["goals"] = GOALS
    sections.save()
    return sections.results


def measure_steps(
    device: torch.device, sections: Sections, timer: DeviceTimer, config: Any, dtype: torch.dtype, large: bool
) -> None:
    """The step's sections: each side at both sizes; its weights are freed before the next side's are made."""
    text = 512 if large else 5
    sizes = SIZES if large else {"small": (12, 8)}
    given = {
        name: gpu_step.random_inputs(config, text, target, reference, device, dtype)
        for name, (target, reference) in sizes.items()
    }

    def ours(side: str) -> dict[str, Any]:
        model = gpu_step.random_network(config, device, dtype)
        step = gpu_step.on_kernels(model, *gpu_step.SIDES[side], free=True)
        measured: dict[str, Any] = {"weights_gib": gpu_step.weight_bytes(step) / 2**30}
        for name in sizes:
            measured[name] = gpu_step.measure_step(step, given[name], timer, replay=True)
        return measured

    def theirs(compiled: bool, library_fp8: bool, names: Sequence[str]) -> dict[str, Any]:
        model = gpu_step.random_network(config, device, dtype)
        if library_fp8:
            gpu_step.to_library_fp8(model)
        if compiled:
            torch.compiler.reset()
            gpu_step.compile_blocks(model)
        return {name: gpu_step.measure_step(model, given[name], timer, replay=compiled) for name in names}

    first, every = [next(iter(sizes))], list(sizes)
    sections.run("step, ours fp8", lambda: ours("fp8"))
    sections.run("step, eager 16-bit", lambda: theirs(False, False, every))
    sections.run("step, ours bf16", lambda: ours("bf16"))
    sections.run("step, ours int4", lambda: ours("int4"))
    sections.run("step, ours int4 fp8", lambda: ours("int4 fp8"))
    if "nvfp4" in gpu_step.sides(device):
        sections.run("step, ours nvfp4", lambda: ours("nvfp4"))
    if large:  # a machine without a GPU may lack a C++ compiler, and _scaled_mm
        sections.run("step, compiled FP8 recipe", lambda: theirs(True, True, first))
        sections.run("step, compiled 16-bit", lambda: theirs(True, False, first))


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The ratios of GOALS, and more, that the results allow."""
    found = {}
    attention = results.get("attention", {})
    library = [each["ms"] for name, each in attention.items() if name.startswith("sdpa")]
    for format in ("fp8", "int8", "16-bit"):
        if library and f"ours {format}" in attention:
            found[f"attention {format} over the best SDPA"] = min(library) / attention[f"ours {format}"]["ms"]
    if results.get("passes"):
        found["worst elementwise pass, share of copy"] = min(
            each["of_copy"] for each in results["passes"].values()
        )

    def step(side: str) -> float | None:
        sizes = [each["ms"] for each in results.get(f"step, {side}", {}).values() if isinstance(each, dict)]
        return sizes[0] if sizes else None

    for name, side, other in (
        ("step fp8 over eager", "ours fp8", "eager 16-bit"),
        ("step bf16 over eager", "ours bf16", "eager 16-bit"),
        ("step fp8 over the compiled FP8 recipe", "ours fp8", "compiled FP8 recipe"),
        ("step int4 over bf16", "ours int4", "ours bf16"),
        ("step int4 with fp8 inputs over bf16", "ours int4 fp8", "ours bf16"),
        ("step nvfp4 over fp8", "ours nvfp4", "ours fp8"),
    ):
        mine, theirs = step(side), step(other)
        if mine and theirs:
            found[name] = theirs / mine
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """Correctness, the device's limits, kernels, steps, ratios with their goals, and skipped sections."""
    errors = [
        [f"{section}: {name}", f"{each['error']:.2e}", f"{each['bound']}", "yes" if each["passed"] else "NO"]
        for section in CORRECTNESS
        for name, each in result.get(section, {}).items()
    ]
    found = [[name, f"{value:.1f}"] for name, value in result.get("limits", {}).items()]
    timings = [
        [f"{section}: {name}", f"{each['ms']:.3f}", f"{each[unit]:.2f} {title}"]
        for section, unit, title in (
            ("attention", "tflop_s", "TFLOP/s"),
            ("products", "tflop_s", "TFLOP/s"),
            ("passes", "of_copy", "of copy"),
            ("unpacking", "of_copy", "of copy"),
        )
        for name, each in result.get(section, {}).items()
    ]
    steps = [
        [f"{section.removeprefix('step, ')}, {name}", f"{each['ms']:.2f}", f"{each['peak_gib']:.1f}"]
        for section, sizes in result.items()
        if section.startswith("step, ")
        for name, each in sizes.items()
        if isinstance(each, dict)
    ]
    reached = [
        [name, f"{value:.2f}", str(GOALS.get(name, ""))] for name, value in result.get("ratios", {}).items()
    ]
    skipped = [[name, why] for name, why in result.get("skipped", {}).items()]
    every = [
        Table(["kernel", "error", "bound", "passed"], errors),
        Table(["limit of the device", "measured"], found),
        Table(["kernel", "time [ms]", "rate"], timings),
        Table(["step", "time [ms]", "peak [GiB]"], steps),
        Table(["ratio", "measured", "goal"], reached),
        Table(["skipped", "why"], skipped),
    ]
    return [table for table in every if table.rows]


def footer(result: dict[str, Any]) -> str:
    return machine_line(result["machine"])
