"""Speed and memory of quantized bundles, on a transformer wide enough to be bound by its matrices: random weights.

A synthetic checkpoint is exported as fp32 and in each format by the exporter itself; then one step of the denoiser of
every bundle, and of diffusers in bf16 on the same weights, is timed in turn (A B C A B C …) in one process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..decibels import decibels
from ..errors import KontextError
from ..model.config import KontextConfig, TransformerConfig
from ..quant.methods import FORMATS
from ..runtime.bundle import Bundle
from ..tiny.architecture import TINY
from .fidelity import bits as fidelity_bits
from .fullsize import synthetic
from .inputs import command
from .machine import describe, one_line, usable_cores
from .measure import Clock, Summary, interleave, run_process
from .quantspeed_step import Array, bundle_step, diffusers_step
from .report import Table, mebibytes, milliseconds, ratio

PEER = "diffusers bf16"


def config_of(hidden: int) -> KontextConfig:
    """FLUX's proportions (heads of 128) at another width, 2 + 4 blocks; all around it is the embedded model's."""
    if hidden % 128:
        raise KontextError(f"--hidden must be a multiple of 128, the width of a head; not {hidden}")
    transformer = TransformerConfig(
        hidden_size=hidden,
        num_heads=hidden // 128,
        num_double_blocks=2,
        num_single_blocks=4,
        text_dim=TINY.transformer.text_dim,
        pooled_dim=TINY.transformer.pooled_dim,
    )
    return dataclasses.replace(TINY, name=f"synthetic-{hidden}", transformer=transformer)


def measure(
    formats: Sequence[str],
    *,
    hidden: int,
    tokens: int,
    repeat: int,
    warmup: int,
    folder: Path | None = None,
    diffusers: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Times `repeat` steps of every side after `warmup`, at `tokens` of the target and as many of the reference.

    Raises:
        KontextError: a format is unknown, `tokens` makes no grid, or the disk is full.
    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise KontextError(f"--formats takes {', '.join(FORMATS)}; not {', '.join(map(repr, unknown))}")
    if tokens & (tokens - 1):
        raise KontextError(f"--tokens must be a power of two, not {tokens}")
    if folder is not None and not folder.is_dir():
        raise KontextError(f"{folder} is not a folder: --folder takes one with room for the bundles")
    config = config_of(hidden)
    with tempfile.TemporaryDirectory(dir=folder, prefix="kontext-quantspeed-") as temporary:
        root = Path(temporary)
        checkpoint = root / "checkpoint"
        synthetic.check_room(root, 5 * synthetic.size_of(config))
        synthetic.write(checkpoint, config, lambda _: None)
        words = command("kontext-export", "kontext.export.cli.main")
        for name in ("fp32", *formats):
            flags = ["--fp32"] if name == "fp32" else ["--fp32", f"--{name}"]
            run_process([*words, str(checkpoint), "-o", str(root / name), *flags, "--quiet"])
        places = {name: root / name for name in ("fp32", *formats)}
        memory = {name: memory_of("bundle", place, tokens) for name, place in places.items()}
        steps: dict[str, Callable[[], Array]] = {
            name: bundle_step(place, tokens) for name, place in places.items()
        }
        if diffusers:
            memory[PEER] = memory_of("diffusers", checkpoint, tokens)
            steps[PEER] = diffusers_step(checkpoint, tokens)
        outputs = {name: step() for name, step in steps.items()}
        sides = {name: partial(timed, step) for name, step in steps.items()}
        with tqdm(total=len(sides) * (warmup + repeat), desc="steps", disable=not progress) as bar:
            seconds = interleave(sides, repeat, warmup=warmup, done=bar.update)
        bits = weights_of({name: Bundle.open(place) for name, place in places.items()})
    return {
        "what": "quantspeed",
        "hidden": hidden,
        "blocks": [config.transformer.num_double_blocks, config.transformer.num_single_blocks],
        "tokens": [tokens, tokens],
        "threads": usable_cores(),
        "sides": {
            name: {
                "seconds": Summary.of(seconds[name]).to_json(),
                "snr": round(snr(outputs[name], outputs["fp32"]), 1),
                **memory[name],
                **bits.get(name, {}),
            }
            for name in steps
        },
        "machine": describe(),
    }


def timed(step: Callable[[], Array]) -> float:
    clock = Clock()
    clock.wrap("step", step)()
    return clock.stages["step"][0]


def snr(found: Array, expected: Array) -> float:
    energy = [float(np.square(x, dtype=np.float64).sum()) for x in (expected, found - expected)]
    return decibels(*energy)


def memory_of(side: str, folder: Path, tokens: int) -> dict[str, int]:
    """Memory of a process that makes two steps: resident after them, and its peak, loading included."""
    with tempfile.TemporaryDirectory() as name:
        record = Path(name) / "memory.json"
        words = [sys.executable, "-m", "kontext.bench.quantspeed_step", side, str(folder)]
        cost = run_process([*words, "--tokens", str(tokens), "--record", str(record)])
        noted = json.loads(record.read_text(encoding="utf-8"))
    return {"resident_bytes": noted["after"], "peak_bytes": cost.peak_bytes}


def weights_of(bundles: dict[str, Bundle]) -> dict[str, dict[str, Any]]:
    """Bytes of each transformer's file, and bits per weight of the layers that any of the bundles quantizes."""
    layers = fidelity_bits.common_layers(bundles["fp32"], list(bundles.values()))
    return {
        name: {
            "weight_bytes": bundle.graphs["transformer"].weights.stat().st_size,
            "bits_per_weight": fidelity_bits.layer_bits(bundle, bundles["fp32"], layers),
        }
        for name, bundle in bundles.items()
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """One row a side; ratios are of medians, above 1 where the side is faster than what the column names."""
    sides = result["sides"]
    others = [name for name in ("fp32", PEER) if name in sides]
    header = ["one step", "median [ms]", "p95", *(f"against {name}" for name in others)]
    header += ["transformer [MiB]", "resident [MiB]", "peak [MiB]", "SNR to fp32 [dB]"]
    rows = []
    for name, side in sides.items():
        median = side["seconds"]["median"]
        rows.append(
            [
                name,
                milliseconds(median),
                milliseconds(side["seconds"]["p95"]),
                *(ratio(median, sides[other]["seconds"]["median"]) for other in others),
                mebibytes(side["weight_bytes"]) if "weight_bytes" in side else "-",
                mebibytes(side["resident_bytes"]),
                mebibytes(side["peak_bytes"]),
                "-" if name == "fp32" else f"{side['snr']:.1f}",
            ]
        )
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    doubles, singles = result["blocks"]
    target, reference = result["tokens"]
    count = result["sides"]["fp32"]["seconds"]["count"]
    return (
        f"Random weights, hidden size {result['hidden']}, {doubles} + {singles} blocks, {target} + {reference} image "
        f"tokens, {result['threads']} threads, {count} steps a side in turn. Memory is a whole process's. diffusers "
        f"computes the modulation inside every step.\n{one_line(result['machine'])}"
    )
