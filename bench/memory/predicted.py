"""Predicted and measured peak memory of each stage of an edit on this machine's CPU.

A model with random weights is exported in several formats and to a memory budget. One edit with each bundle measures
the peaks; the planner's memory model (`quant/memory.py`) predicts them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ...child_process import module_command
from ...export.calibration.plan import stored_layers
from ...export.cli.plan_text import TITLES
from ...model.config import AutoencoderConfig, ClipConfig, KontextConfig, T5Config, TransformerConfig
from ...quant.gpus import find_target
from ...quant.memory import Workload, demands, executor_of, resident_bytes
from ...runtime.bundle import Bundle
from ...temporary_folder import temporary_folder
from ..flags import parse_names
from ..fullsize import synthetic
from ..machine import describe_machine, machine_line
from ..process_cost import export_command, run_process
from ..report import Table, finish

MIDDLE = KontextConfig(
    "kontext-middle",
    TransformerConfig(
        hidden_size=1024, num_heads=8, num_double_blocks=4, num_single_blocks=8, text_dim=1024, pooled_dim=512
    ),
    AutoencoderConfig((64, 128, 256, 256), sample_size=256),
    ClipConfig(768, 512, 2048, num_layers=6, num_heads=8),
    T5Config(512, 1024, 64, 2816, num_layers=8, num_heads=16, max_length=128),
)
"""428 million parameters: enough for weights and activations to exceed the memory of the process itself."""

SIDE, STEPS = 256, 2
"""Size and steps of the edit. The second step shows what the runtime keeps from the first."""

BUDGET = "700MB"

VARIANTS = {
    "fp32": ["--fp32"],
    "int8": ["--fp32", "--int8"],
    "int4": ["--fp32", "--int4", "--rank", "0"],
    "fit": ["--fp32", "--fit", BUDGET, "--gpu", "cpu"],
}
"""Name → flags of kontext-export."""

Config = TypeVar("Config", TransformerConfig, AutoencoderConfig, ClipConfig, T5Config)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep checkpoint and bundles here and reuse existing ones, 6 GB (a temporary one)",
    )
    parser.add_argument(
        "--bundles", default=",".join(VARIANTS), metavar="NAME,…", help=f"({','.join(VARIANTS)})"
    )


def run(arguments: argparse.Namespace) -> None:
    names = parse_names(arguments.bundles, "--bundles", tuple(VARIANTS))
    with temporary_folder("memory") as temporary:
        result = measure_memory(arguments.folder or Path(temporary), names, sys.stderr.isatty())
    finish(result, tables(result), footer(result), arguments.json)


def measure_memory(folder: Path, variants: list[str], progress: bool) -> dict[str, Any]:
    """Writes checkpoint and bundles into `folder`, except those that already exist there, and measures every bundle.

    Raises:
        KontextError: the disk has too little space, or an export or an edit fails.
    """
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "model_index.json").exists():
        synthetic.check_disk_space(folder, 4 * synthetic.checkpoint_bytes(MIDDLE))
        with tqdm(desc="checkpoint", unit="B", unit_scale=True, disable=not progress) as bar:
            synthetic.write_checkpoint(checkpoint, MIDDLE, bar.update)
    result: dict[str, Any] = {
        "what": "memory",
        "size": [SIDE, SIDE],
        "steps": STEPS,
        "bundles": {},
        "machine": describe_machine(),
    }
    for name in tqdm(variants, desc="bundles", disable=not progress):
        bundle = folder / name
        if not bundle.exists():
            flags = [*VARIANTS[name], "--quiet", "-o", str(bundle)]
            run_process([*export_command(), str(checkpoint), *flags])
        result["bundles"][name] = {
            "predicted": predict(bundle, Workload(SIDE, SIDE, 1, 1, STEPS)),
            "measured": measure_edit(bundle),
        }
    return result


def measure_edit(bundle: Path) -> dict[str, int]:
    """Network → peak of resident memory in bytes, measured in a process of its own."""
    with temporary_folder("memory") as temporary:
        output = Path(temporary) / "peaks.json"
        command = module_command("kontext.bench.memory.child", str(bundle))
        command += [f"{SIDE}x{SIDE}", str(STEPS)]
        run_process(["sh", "-c", f'exec "$@" > "{output}"', "sh", *command])
        peaks: dict[str, int] = json.loads(output.read_text())
        return peaks


def predict(folder: Path, work: Workload) -> dict[str, int]:
    """Network → the peak in bytes that the planner's memory model predicts for an edit on a CPU."""
    bundle = Bundle.open(folder)
    config = config_of(bundle.manifest["model"])
    precision = bundle.manifest["precision"]
    cpu = find_target("cpu")
    needs = demands(config, precision["networks"], work, executor_of(cpu))
    return {
        name: demand.bytes + resident_bytes(stored_layers(config, name, precision), cpu)
        for name, demand in needs.items()
    }


def config_of(model: Mapping[str, Any]) -> KontextConfig:
    """A model's configuration from a bundle's manifest."""
    return KontextConfig(
        model["name"],
        section(TransformerConfig, model["transformer"]),
        section(AutoencoderConfig, model["autoencoder"]),
        section(ClipConfig, model["text_encoder"]),
        section(T5Config, model["text_encoder_2"]),
    )


def section(kind: type[Config], data: Mapping[str, Any]) -> Config:
    """A network's configuration; entries that are not its fields are ignored."""
    known = {field.name for field in fields(kind)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.items()
        if name in known
    }
    return kind(**values)


def tables(result: dict[str, Any]) -> list[Table]:
    header = [
        "peak [MB]",
        *(f"{name}, {what}" for name in result["bundles"] for what in ("measured", "predicted")),
    ]
    rows = []
    for network, title in TITLES.items():
        row = [title]
        for entry in result["bundles"].values():
            row += [f"{entry[what][network] / 1e6:.0f}" for what in ("measured", "predicted")]
        rows.append(row)
    row = ["edit"]
    for entry in result["bundles"].values():
        measured, predicted = (max(entry[what].values()) for what in ("measured", "predicted"))
        row += [f"{measured / 1e6:.0f}", f"{predicted / 1e6:.0f} ({predicted / measured - 1:+.0%})"]
    rows.append(row)
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    return (
        f"Resident memory of one edit at {width}x{height} with one reference, {result['steps']} steps, each network "
        f"unloaded after its stage; random weights, 428 million parameters.\n{machine_line(result['machine'])}"
    )
