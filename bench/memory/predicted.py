"""Predicted against measured memory on this machine: `python -m kontext.bench.memory.predicted --json FILE`.

A model of random weights is exported in several formats and to a budget; one edit each says what every stage takes at
most, and the planner's memory model what it should have taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ...errors import KontextError
from ...export.calibration.plan import stored_layers
from ...export.cli.plan_text import TITLES
from ...model.config import AutoencoderConfig, ClipConfig, KontextConfig, T5Config, TransformerConfig
from ...quant.gpus import find_target
from ...quant.memory import Workload, demands, engine_of, resident_bytes
from ...runtime.bundle import Bundle
from ..command_line import exit_code, module_parser, show
from ..fullsize import synthetic
from ..inputs import command
from ..machine import describe, one_line
from ..measure import run_process
from ..report import Table, replace_section, write_json

MIDDLE = KontextConfig(
    "kontext-middle",
    TransformerConfig(
        hidden_size=1024, num_heads=8, num_double_blocks=4, num_single_blocks=8, text_dim=1024, pooled_dim=512
    ),
    AutoencoderConfig((64, 128, 256, 256), sample_size=256),
    ClipConfig(768, 512, 2048, num_layers=6, num_heads=8),
    T5Config(512, 1024, 64, 2816, num_layers=8, num_heads=16, max_length=128),
)
"""428 million parameters: large enough for weights and activations to outweigh the process around them."""

SIDE, STEPS = 256, 2
"""Of the edit. A second step shows what the runtime keeps from the first."""

BUDGET = "700MB"

VARIANTS = {
    "fp32": ["--fp32"],
    "int8": ["--fp32", "--int8"],
    "int4": ["--fp32", "--int4", "--rank", "0"],
    "fit": ["--fp32", "--fit", BUDGET, "--gpu", "cpu"],
}
"""Name → flags of the export."""

Config = TypeVar("Config", TransformerConfig, AutoencoderConfig, ClipConfig, T5Config)


def measure(folder: Path, variants: list[str], progress: bool) -> dict[str, Any]:
    """Everything, in `folder`, where checkpoint and bundles stay: what is there already is used again."""
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "model_index.json").exists():
        synthetic.check_room(folder, 4 * synthetic.size_of(MIDDLE))
        with tqdm(desc="checkpoint", unit="B", unit_scale=True, disable=not progress) as bar:
            synthetic.write(checkpoint, MIDDLE, bar.update)
    result: dict[str, Any] = {
        "what": "memory",
        "size": [SIDE, SIDE],
        "steps": STEPS,
        "bundles": {},
        "machine": describe(),
    }
    for name in tqdm(variants, desc="bundles", disable=not progress):
        bundle = folder / name
        if not bundle.exists():
            words = [*command("kontext-export", "kontext.export.cli.main"), str(checkpoint)]
            run_process([*words, *VARIANTS[name], "--quiet", "-o", str(bundle)])
        result["bundles"][name] = {
            "predicted": predict(bundle, Workload(SIDE, SIDE, 1, 1, STEPS)),
            "measured": run_edit(bundle),
        }
    return result


def run_edit(bundle: Path) -> dict[str, int]:
    """Network → peak of resident memory in bytes."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "peaks.json"
        words = [
            sys.executable,
            "-m",
            "kontext.bench.memory.child",
            str(bundle),
            f"{SIDE}x{SIDE}",
            str(STEPS),
        ]
        run_process(["sh", "-c", f'exec "$@" > "{output}"', "sh", *words])
        peaks: dict[str, int] = json.loads(output.read_text())
        return peaks


def predict(folder: Path, work: Workload) -> dict[str, int]:
    """Network → the peak that the planner's memory model gives for an edit with the bundle in `folder` on a CPU."""
    bundle = Bundle.open(folder)
    config = config_of(bundle.manifest["model"])
    precision = bundle.manifest["precision"]
    cpu = find_target("cpu")
    needs = demands(config, precision["networks"], work, engine_of(cpu))
    return {
        name: demand.bytes + resident_bytes(stored_layers(config, name, precision), cpu)
        for name, demand in needs.items()
    }


def config_of(model: Mapping[str, Any]) -> KontextConfig:
    """The sizes of a bundle's model, from its manifest."""
    return KontextConfig(
        model["name"],
        part(TransformerConfig, model["transformer"]),
        part(AutoencoderConfig, model["autoencoder"]),
        part(ClipConfig, model["text_encoder"]),
        part(T5Config, model["text_encoder_2"]),
    )


def part(kind: type[Config], data: Mapping[str, Any]) -> Config:
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
        f"Resident memory of one edit at {width}x{height} with a reference, {result['steps']} steps, each network "
        f"dropped after its stage; random weights, 428 million parameters.\n{one_line(result['machine'])}"
    )


def run(options: argparse.Namespace) -> None:
    names = options.bundles.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise KontextError(f"--bundles takes {', '.join(VARIANTS)}, not {unknown[0]!r}")
    with tempfile.TemporaryDirectory(prefix="kontext-memory-") as temporary:
        result = measure(options.folder or Path(temporary), names, sys.stderr.isatty())
    if options.json is not None:
        write_json(options.json, result)
    if options.page is not None:
        text = "\n\n".join([*(each.markdown() for each in tables(result)), footer(result)])
        replace_section(options.page, "memory", text)
    show(tables(result), footer(result))


def main(arguments: list[str] | None = None) -> int:
    parser = module_parser("memory", __doc__)
    parser.add_argument(
        "--folder", type=Path, help="keep checkpoint and bundles there, and use those that are there (6 GB)"
    )
    parser.add_argument("--bundles", default=",".join(VARIANTS), help="which, by name")
    parser.add_argument("--page", type=Path, metavar="FILE", help="rewrite this page's section of memory")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
