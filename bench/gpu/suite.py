"""`python -m kontext.bench.gpu.suite`: the kernels and the full-size step on this machine's GPU, in under nine minutes.

Correctness of every kernel on the device, the device's own limits, kernel timings beside PyTorch's and cuBLAS's,
then one denoising step of the 12 B transformer with random weights: eager, compiled, in flux-fast's recipe, and
ours in bf16, FP8, INT4 and INT4 with FP8 inputs. Writes bench/results/<gpu>.json after every section, so that a run
that is cut off keeps what it measured. On a machine with no GPU the same code runs at small sizes.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...kernels.autotune import MEASURED
from ...kernels.launch import triton
from ..machine import describe
from . import kernels
from . import step as gpu_step
from .clock import Clock, limits

RESULTS = Path(__file__).resolve().parent / "results"
BUDGET = 500
"""Seconds after which no new section is begun."""

SIZES = {"1024x1024": (4096, 4096), "768x768": (2304, 4096)}
"""Output → target tokens, and reference tokens of a 1024² reference."""

GOALS = {
    "attention fp8 over the best SDPA": 1.4,
    "attention 16-bit over the best SDPA": 0.9,
    "worst elementwise pass, share of copy": 0.85,
    "step fp8 over eager": 2.2,
    "step fp8 over the compiled FP8 recipe": 1.0,
    "step int4 over bf16": 1.0,
}
"""Ratios that the kernels were built for, on an H100; above is better."""


class Report:
    """Results as they come in: kept in a file, and told on stdout."""

    def __init__(self, path: Path | None, budget: float) -> None:
        self.path = path
        self.budget = budget
        self.begin = time.perf_counter()
        self.results: dict[str, Any] = {"skipped": {}, "seconds": {}}

    def section(self, name: str, run: Callable[[], Any]) -> Any:
        """Runs one section; a fault in it is recorded and does not end the others."""
        elapsed = time.perf_counter() - self.begin
        if elapsed > self.budget:
            self.results["skipped"][name] = f"{elapsed:.0f} s had passed"
            print(f"[{elapsed:4.0f} s] {name}: skipped, out of time", flush=True)
            return None
        print(f"[{elapsed:4.0f} s] {name}", flush=True)
        value = None
        try:
            value = run()
        except Exception as fault:  # whatever a library of the device's may raise
            lines = str(fault).strip().splitlines()
            self.results["skipped"][name] = f"{type(fault).__name__}: {lines[0] if lines else ''}"
            print(f"         {self.results['skipped'][name]}", flush=True)
        else:
            self.results[name] = value
        # Networks are cycles of objects, and what is left of them would count into the next section's peak.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        self.results["seconds"][name] = round(time.perf_counter() - self.begin - elapsed, 1)
        self.save()
        return value

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".partial")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(rounded(self.results), indent=2, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)


def rounded(value: Any) -> Any:
    """Floats to five digits: more are noise; None for what JSON has no number for."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value


def run(device: torch.device, report: Report) -> dict[str, Any]:
    """All sections, the most important first."""
    large = device.type == "cuda"
    clock = Clock(device, repeats=20 if large else 2)
    shape = kernels.Shape() if large else kernels.SMALL
    dtype = shape.dtype
    report.results["machine"] = describe()
    report.results["machine"]["triton"] = triton.__version__ if triton is not None else None
    torch.manual_seed(0)
    found = report.section("limits", lambda: limits(clock, 8192 if large else 64)) or {}
    small = kernels.Shape(hidden=1024, heads=8, mlp=2048, text=77, image=950) if large else shape
    report.section("correctness", lambda: kernels.correctness(small, device))
    config = gpu_step.FULL if large else gpu_step.SMALL
    report.section("correctness of the step", lambda: gpu_step.shallow_errors(device, dtype, config))
    report.section("attention", lambda: kernels.attentions(shape, clock))
    copy_gb_s = found.get("copy_gb_s", float("nan"))
    report.section("passes", lambda: kernels.passes(shape, clock, copy_gb_s))
    report.section("unpacking", lambda: kernels.unpackings(shape, clock, copy_gb_s))
    report.section("products", lambda: kernels.products(shape, clock))
    steps(device, report, clock, config, dtype, large)
    report.results["chosen"] = MEASURED
    report.results["ratios"] = ratios(report.results)
    report.results["goals"] = GOALS
    report.save()
    return report.results


def steps(
    device: torch.device, report: Report, clock: Clock, config: Any, dtype: torch.dtype, large: bool
) -> None:
    """The step's sections: each side at both sizes, its weights freed before the next side's are made."""
    text = 512 if large else 5
    sizes = SIZES if large else {"small": (12, 8)}
    given = {
        name: gpu_step.inputs(config, text, target, reference, device, dtype)
        for name, (target, reference) in sizes.items()
    }

    def ours(side: str) -> dict[str, Any]:
        model = gpu_step.network(config, device, dtype)
        step = gpu_step.on_kernels(model, *gpu_step.SIDES[side], free=True)
        measured: dict[str, Any] = {"weights_gib": gpu_step.weight_bytes(step) / 2**30}
        for name in sizes:
            measured[name] = gpu_step.measure(step, given[name], clock, replay=True)
        return measured

    def theirs(compiled: bool, library_fp8: bool, names: Sequence[str]) -> dict[str, Any]:
        model = gpu_step.network(config, device, dtype)
        if library_fp8:
            gpu_step.to_library_fp8(model)
        if compiled:
            torch.compiler.reset()
            gpu_step.compile_blocks(model)
        return {name: gpu_step.measure(model, given[name], clock, replay=compiled) for name in names}

    first, every = [next(iter(sizes))], list(sizes)
    report.section("step, ours fp8", lambda: ours("fp8"))
    report.section("step, eager 16-bit", lambda: theirs(False, False, every))
    report.section("step, ours bf16", lambda: ours("bf16"))
    report.section("step, ours int4", lambda: ours("int4"))
    report.section("step, ours int4 fp8", lambda: ours("int4 fp8"))
    if large:  # a compiler for the CPU need not be there, nor _scaled_mm
        report.section("step, compiled FP8 recipe", lambda: theirs(True, True, first))
        report.section("step, compiled 16-bit", lambda: theirs(True, False, first))


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The goals' ratios, of what was measured."""
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
    ):
        mine, theirs = step(side), step(other)
        if mine and theirs:
            found[name] = theirs / mine
    return found


def table(results: dict[str, Any]) -> str:
    """What was measured, in lines; the ratios last."""
    lines = []
    for section in ("correctness", "correctness of the step"):
        for name, each in results.get(section, {}).items():
            verdict = "" if each["passed"] else "  TOO LARGE"
            lines.append(f"{section}: {name:24}{each['error']:>12.2e} of {each['bound']}{verdict}")
    for name, value in results.get("limits", {}).items():
        lines.append(f"limits: {name:24}{value:>12.1f}")
    for section, unit in (
        ("attention", "tflop_s"),
        ("products", "tflop_s"),
        ("passes", "of_copy"),
        ("unpacking", "of_copy"),
    ):
        for name, each in results.get(section, {}).items():
            lines.append(f"{section}: {name:44}{each['ms']:>10.3f} ms{each[unit]:>10.2f} {unit}")
    for section, sizes in results.items():
        if section.startswith("step, "):
            for name, each in sizes.items():
                if isinstance(each, dict):
                    lines.append(f"{section:28}{name:12}{each['ms']:>10.2f} ms{each['peak_gib']:>8.1f} GiB")
    for name, value in results.get("ratios", {}).items():
        goal = f" (goal {GOALS[name]})" if name in GOALS else ""
        lines.append(f"ratio: {name:44}{value:>8.2f}{goal}")
    lines += [f"skipped: {name}: {why}" for name, why in results.get("skipped", {}).items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 where a kernel is wrong on this device."""
    parser = argparse.ArgumentParser(prog="python -m kontext.bench.gpu.suite", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="results (default: bench/results/<gpu>.json)"
    )
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    path = options.json
    if path is None and device.type == "cuda":
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
        path = RESULTS / f"{name}.json"
    with torch.inference_mode():
        results = run(device, Report(path, options.budget))
    print(table(results))
    wrong = [
        name
        for section in ("correctness", "correctness of the step")
        for name, each in results.get(section, {}).items()
        if not each["passed"]
    ]
    return 1 if wrong or "correctness" in results["skipped"] else 0


if __name__ == "__main__":
    sys.exit(main())
