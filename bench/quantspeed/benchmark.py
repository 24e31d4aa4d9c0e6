"""Step time and memory of quantized bundles, on random weights wide enough for matrix products to dominate.

A synthetic checkpoint is exported as fp32 and in each format; then one step of each bundle's transformer, and of
diffusers' in bf16 on the same weights, is timed in turn (A B C A B C …) in one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from ...child_process import module_command
from ...decibels import decibels
from ...errors import KontextError
from ...export.calibration.samples import MIN_SAMPLES
from ...model.config import KontextConfig, TransformerConfig
from ...quant.formats import FORMATS
from ...runtime.bundle import Bundle
from ...temporary_folder import temporary_folder
from ...tiny.architecture import TINY
from ..fidelity import bits_per_weight
from ..flags import at_least, parse_names
from ..fullsize import synthetic
from ..machine import describe_machine, machine_line, usable_cores
from ..process_cost import export_command, run_process
from ..report import Table, finish, mebibytes, milliseconds, ratio
from ..timing import Percentiles, StageTimer, interleave
from . import stable_diffusion_cpp
from .step import Array, make_step

PEER = "diffusers bf16"
STATIC_INT8 = "int8-static"
"""Of --formats: `--int8 --static-inputs`, calibrated on one step of a few random pictures, which is enough for
its time and memory. The measured step has inputs of its own, which such scales clip: its error would say nothing."""

COMPILED_PEER = "diffusers bf16, torch.compile"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--formats",
        default="int8,int4",
        metavar="NAME,…",
        help=f"beside fp32: quantized formats, or {STATIC_INT8} (int8,int4)",
    )
    parser.add_argument(
        "--hidden", type=int, default=1024, help="hidden size, a multiple of 128 from 512 (1024)"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="target tokens, and reference tokens (1024)")
    parser.add_argument("--repeat", type=int, default=7, help="measured steps per side (7)")
    parser.add_argument("--warmup", type=int, default=2, help="steps per side before timing starts (2)")
    parser.add_argument("--folder", type=Path, help="for the bundles, 2 GB (the system's temporary folder)")
    parser.add_argument(
        "--openvino", action="store_true", help="also OpenVINO in bf16, and diffusers by torch.compile"
    )
    parser.add_argument(
        "--stable-diffusion-cpp",
        metavar="NAME,…",
        help=f"also {stable_diffusion_cpp.LIBRARY} with these weights, of "
        f"{', '.join(stable_diffusion_cpp.FORMATS)}; prompts have {stable_diffusion_cpp.TEXT_TOKENS} tokens then",
    )
    parser.add_argument("--without-diffusers", action="store_true", help="do not measure diffusers")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, repeat=1, warmup=0, hidden=512, tokens=16)
    library = stable_diffusion_cpp
    others = arguments.stable_diffusion_cpp
    formats = parse_names(others, "--stable-diffusion-cpp", library.FORMATS) if others else []
    if formats and importlib.util.find_spec(library.MODULE) is None:
        raise KontextError(f"{library.LIBRARY} is not installed: pip install {library.LIBRARY}")
    result = measure_steps(
        parse_names(arguments.formats, "--formats", (*FORMATS, STATIC_INT8)),
        hidden=arguments.hidden,
        tokens=arguments.tokens,
        repeat=arguments.repeat,
        warmup=arguments.warmup,
        folder=arguments.folder,
        diffusers=not arguments.without_diffusers,
        openvino=arguments.openvino,
        stable_diffusion=formats,
        progress=sys.stderr.isatty(),
    )
    finish(result, tables(result), footer(result), arguments.json)


def config_of(hidden: int, blocks: tuple[int, int] = (2, 4)) -> KontextConfig:
    """FLUX's proportions (heads of 128) at another width and depth; the other networks are the embedded model's."""
    if hidden % 128:
        raise KontextError(f"--hidden must be a multiple of 128, the size of a head, not {hidden}")
    double, single = blocks
    transformer = TransformerConfig(
        hidden_size=hidden,
        num_heads=hidden // 128,
        num_double_blocks=double,
        num_single_blocks=single,
        text_dim=TINY.transformer.text_dim,
        pooled_dim=TINY.transformer.pooled_dim,
    )
    return dataclasses.replace(TINY, name=f"synthetic-{hidden}", transformer=transformer)


def measure_steps(
    formats: Sequence[str],
    *,
    hidden: int,
    tokens: int,
    repeat: int,
    warmup: int,
    folder: Path | None = None,
    diffusers: bool = True,
    openvino: bool = False,
    stable_diffusion: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Times `repeat` steps of every side after `warmup`, with `tokens` target tokens and as many reference tokens.

    Raises:
        KontextError: `hidden` or `tokens` is not allowed, or the disk has too little space.
    """
    if tokens & (tokens - 1):
        raise KontextError(f"--tokens must be a power of two, not {tokens}")
    if folder is not None and not folder.is_dir():
        raise KontextError(f"--folder {folder} is not a folder")
    config = config_of(hidden)
    text_tokens = None
    if stable_diffusion:
        config, text_tokens = stable_diffusion_cpp.fitted(config), stable_diffusion_cpp.TEXT_TOKENS
    with temporary_folder("quantspeed", folder) as temporary:
        root = Path(temporary)
        checkpoint = root / "checkpoint"
        synthetic.check_disk_space(root, 5 * synthetic.checkpoint_bytes(config))
        synthetic.write_checkpoint(checkpoint, config, lambda _: None)
        for name in ("fp32", *formats):
            flags = ["--fp32"] if name == "fp32" else ["--fp32", f"--{name}"]
            if name == STATIC_INT8:
                flags = [
                    "--fp32",
                    "--int8",
                    "--static-inputs",
                    "--calibrate",
                    str(write_samples(root / "samples")),
                    *("--steps", "1"),  # of calibration too
                ]
            flags += ["--max-sequence-length", str(text_tokens)] if text_tokens else []
            run_process([*export_command(), str(checkpoint), "-o", str(root / name), *flags, "--quiet"])
        bundles = {name: root / name for name in ("fp32", *formats)}
        runs = {name: ("onnxruntime", bundle) for name, bundle in bundles.items()}
        if openvino:
            runs["OpenVINO fp32"] = ("openvino-fp32", bundles["fp32"])
            runs |= {
                f"OpenVINO {'bf16' if name == 'fp32' else name}": ("openvino-bf16", bundle)
                for name, bundle in bundles.items()
            }
        if diffusers:
            runs[PEER] = ("diffusers", checkpoint)
        if diffusers and openvino:
            runs[COMPILED_PEER] = ("diffusers-compiled", checkpoint)
        if stable_diffusion:
            stable_diffusion_cpp.write_files(checkpoint, config, root / "stable-diffusion.cpp")
        for weights in stable_diffusion:
            runs[stable_diffusion_cpp.SIDE + weights] = (
                stable_diffusion_cpp.SIDE + weights,
                root / "stable-diffusion.cpp",
            )
        memory = {
            name: step_memory(side, folder, tokens, text_tokens) for name, (side, folder) in runs.items()
        }
        steps = {
            name: make_step(side, folder, tokens, text_tokens, 1 + warmup + repeat)
            for name, (side, folder) in runs.items()
        }
        outputs = {name: step() for name, step in steps.items()}
        sides = {name: partial(timed, step) for name, step in steps.items()}
        with tqdm(total=len(sides) * (warmup + repeat), desc="steps", disable=not progress) as bar:
            seconds = interleave(sides, repeat, warmup=warmup, done=bar.update)
        bits = weight_sizes({name: Bundle.open(bundle) for name, bundle in bundles.items()})
    return {
        "what": "quantspeed",
        "hidden": hidden,
        "blocks": [config.transformer.num_double_blocks, config.transformer.num_single_blocks],
        "tokens": [tokens, tokens],
        "text_tokens": text_tokens or config.text_encoder_2.max_length,
        "threads": usable_cores(),
        "sides": {
            name: {
                "seconds": Percentiles.of(seconds[name]).to_json(),
                "snr": None if name.endswith(STATIC_INT8) else step_snr(outputs[name], outputs["fp32"]),
                **memory[name],
                **bits.get(name, {}),
            }
            for name in steps
        },
        "machine": describe_machine(),
    }


def write_samples(folder: Path) -> Path:
    """The fewest pictures that calibration takes, of random pixels, with instructions."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(MIN_SAMPLES):
        picture = PIL.Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8))
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("make it blue", encoding="utf-8")
    return folder


def timed(step: Callable[[], object]) -> float:
    """Seconds of one step."""
    timer = StageTimer()
    timer.wrap("step", step)()
    return timer.stages["step"][0]


def snr(found: Array, expected: Array) -> float:
    """Signal-to-noise ratio in dB."""
    energy = [float(np.square(x, dtype=np.float64).sum()) for x in (expected, found - expected)]
    return decibels(*energy)


def step_snr(found: Array | None, expected: Array | None) -> float | None:
    """`snr`, rounded; None for a side that gives no velocity out."""
    return None if found is None or expected is None else round(snr(found, expected), 1)


def step_memory(side: str, folder: Path, tokens: int, text_tokens: int | None) -> dict[str, int]:
    """Memory of a new process that runs two steps: resident after them, and the peak, loading included."""
    with temporary_folder("memory") as name:
        record = Path(name) / "memory.json"
        words = module_command("kontext.bench.quantspeed.step", side, str(folder))
        words += ["--text-tokens", str(text_tokens)] if text_tokens else []
        cost = run_process([*words, "--tokens", str(tokens), "--record", str(record)])
        noted = json.loads(record.read_text(encoding="utf-8"))
    return {"resident_bytes": noted["after"], "peak_bytes": cost.peak_bytes}


def weight_sizes(bundles: dict[str, Bundle]) -> dict[str, dict[str, Any]]:
    """Bytes of each transformer's file, and bits per weight of the layers that at least one bundle quantizes."""
    layers = bits_per_weight.common_layers(bundles["fp32"], list(bundles.values()))
    return {
        name: {
            "weight_bytes": bundle.graphs["transformer"].weights.stat().st_size,
            "bits_per_weight": bits_per_weight.layer_bits(bundle, bundles["fp32"], layers),
        }
        for name, bundle in bundles.items()
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """One row per side; ratios are of medians, above 1 where the side is faster than the column's."""
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
                "-" if name == "fp32" or side["snr"] is None else f"{side['snr']:.1f}",
            ]
        )
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    doubles, singles = result["blocks"]
    target, reference = result["tokens"]
    count = result["sides"]["fp32"]["seconds"]["count"]
    text = f" and {result['text_tokens']} text" if "text_tokens" in result else ""
    static = any(name.endswith(STATIC_INT8) for name in result["sides"])
    note = (
        f" {STATIC_INT8} is calibrated on other inputs than this step's, so no SNR is given."
        if static
        else ""
    )
    return (
        f"Random weights, hidden size {result['hidden']}, {doubles} + {singles} blocks, {target} + {reference} image"
        f"{text} tokens, {result['threads']} threads, {count} steps a side in turn. Memory is a whole process's. "
        f"diffusers computes the modulation inside every step.{note}\n{machine_line(result['machine'])}"
    )
