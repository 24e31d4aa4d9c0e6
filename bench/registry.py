"""The subcommands of `kontext-bench`, and the interfaces that their modules implement.

Modules are imported when their subcommand runs or shows its help, so that `kontext-bench --help` imports nothing heavy.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from .report import Table

Result = dict[str, Any]
"""What a benchmark measured, as `--json` writes it: settings, figures and the machine."""


class Subcommand(Protocol):
    """Interface of a subcommand's module: it has these functions."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's flags to its parser."""

    def run(self, arguments: argparse.Namespace) -> int | None:
        """Runs the subcommand and returns the exit code, None for 0. Raises KontextError for bad input."""


class Benchmark(Subcommand, Protocol):
    """Interface of a subcommand that measures. Its `run` ends with `report.finish`, and it has the flag `--json`."""

    def tables(self, result: Result) -> Sequence[Table]:
        """The tables of a result; needs nothing but the JSON."""

    def footer(self, result: Result) -> str:
        """What goes below the tables: the settings, and the machine on the last line."""


@dataclass(frozen=True)
class Entry:
    """A subcommand: its name, a line about it, and its module in this package."""

    name: str
    summary: str
    module: str
    measures: bool = True
    """Whether the module is a Benchmark."""
    state: str | None = None
    """Of what is timed: warm (it has run before) or cold (a new process each time); None if nothing is."""

    def load(self) -> Subcommand:
        return cast(Subcommand, importlib.import_module(f".{self.module}", __package__))


SUBCOMMANDS = (
    Entry("latency", "time per stage of an edit, beside other executors", "latency", state="warm"),
    Entry("throughput", "edits/s by batch, and the share of the limits", "throughput", state="warm"),
    Entry("coldstart", "process start to PNG, beside a diffusers script", "coldstart", state="cold"),
    Entry("export", "export time, peak memory and bundle size by format", "exporting", state="cold"),
    Entry("edits", "success rate of edits on held-out scenes", "edits"),
    Entry("set-pictures", "the pictures of a data set, for its own scorer", "set_pictures", measures=False),
    Entry("fidelity", "error of quantized bundles, and of other libraries", "fidelity.benchmark"),
    Entry("edit-fidelity", "what edits keep: regions, text, characters, chains", "edit_fidelity.benchmark"),
    Entry("methods", "error of each quantization method", "fidelity.methods"),
    Entry("approximations", "error of --cache and --reuse-reference", "fidelity.approximations"),
    Entry("quantspeed", "step time and memory of quantized bundles", "quantspeed.benchmark", state="warm"),
    Entry("loras", "LoRAs at run time: a step with them, and changing them", "loras.benchmark", state="warm"),
    Entry("serving", "throughput and latency of a server under load", "serving.benchmark", state="warm"),
    Entry("batch", "kontext-batch beside the bare step, and its workers", "batch.benchmark", state="warm"),
    Entry("fullsize", "export at FLUX.1 Kontext's size (70 GB of disk)", "fullsize.benchmark", state="cold"),
    Entry("fullsize-edit", "a whole edit on a CPU, stage by stage", "fullsize.edit", state="cold"),
    Entry("engines", "TensorRT builds at full size, without a GPU", "fullsize.engines", state="cold"),
    Entry("memory", "predicted and measured peak memory of an edit", "memory.predicted"),
    Entry("cards", "the fastest recipe on six cards (nothing is run)", "memory.cards"),
    Entry("plan-fidelity", "predicted and measured fidelity of twenty plans", "memory.plan_fidelity"),
    Entry("plans", "plans for cards of 8 to 32 GB (nothing is run)", "memory.plans"),
    Entry("vram-fit", "which cards bundles run on (needs a GPU or fake-gpu)", "memory.vram_fit"),
    Entry("placement", "which operators ONNX Runtime's CUDA provider runs", "placement"),
    Entry("gpu", "Triton kernels and the full-size step on a GPU", "gpu.benchmark", state="warm"),
    Entry("capacity", "GPUs that hold a rate of edits, and their cost", "capacity.benchmark"),
    Entry("compare", "two results: what changed, and what is noise", "compare.command", False),
    Entry("demo", "make edits of all kinds and a contact sheet", "demo", False),
    Entry("references", "edits with two references by each method", "references", False),
    Entry("report", "one HTML page of results and pictures", "html_report.command", False),
    Entry("readme", "rewrite the measured tables and plots of docs/", "readme", False),
    Entry("synthetic", "write a checkpoint of FLUX.1 Kontext's size", "fullsize.synthetic", False),
    Entry("serve", "run Triton Inference Server without a container", "serving.local_server", False),
    Entry("fake-gpu", "run a command on stub CUDA libraries", "fake_gpu.wrapper", False),
)  # fmt: skip
