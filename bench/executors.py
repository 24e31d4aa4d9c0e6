"""One edit on everything that runs it on this processor: ONNX Runtime, OpenVINO in fp32 and bf16, diffusers in bf16.

All sides take turns in one process, and each kontext side's peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..decibels import psnr
from ..errors import KontextError
from ..runtime import OpenVINOOptions, Pipeline
from ..runtime.backends.options import Compute
from ..runtime.bundle import Bundle
from ..temporary_folder import temporary_folder
from . import diffusers_peer
from .flags import add_edit_flags, at_least, edit_settings
from .inputs import output_size, picture_and_prompt
from .latency import TimedBackend, percentiles_of_runs, timed_edit
from .machine import describe_machine, machine_line
from .process_cost import edit_command, run_process
from .report import Table, finish, mebibytes, milliseconds, ratio
from .timing import StageTimer, interleave


@dataclass(frozen=True)
class Executor:
    """What runs edits: a backend of ours on a bundle, or diffusers on a checkpoint."""

    backend: str
    compute: Compute
    compiled: bool = False
    """Whether torch.compile compiles diffusers' transformer."""


EXECUTORS = {
    "onnxruntime": Executor("onnxruntime", "fp32"),
    "openvino-fp32": Executor("openvino", "fp32"),
    "openvino-bf16": Executor("openvino", "bf16"),
    "diffusers-fp32": Executor("diffusers", "fp32"),
    "diffusers-bf16": Executor("diffusers", "bf16"),
    "diffusers-bf16-compiled": Executor("diffusers", "bf16", compiled=True),
}
DEFAULT = "onnxruntime,openvino-fp32,openvino-bf16,diffusers-bf16,diffusers-bf16-compiled"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="one that computes in fp32")
    parser.add_argument(
        "--quantized",
        type=Path,
        action="append",
        default=[],
        metavar="BUNDLE",
        help="also OpenVINO in bf16 on this bundle; repeatable",
    )
    parser.add_argument(
        "--sides",
        default=DEFAULT,
        metavar="NAME,…",
        help=f"of {', '.join(EXECUTORS)} (all but diffusers-fp32)",
    )
    parser.add_argument("--warmup", type=int, default=2, help="edits per side before timing starts (2)")
    add_edit_flags(parser, steps=4, repeat=10)


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, warmup=0)
    names = [name.strip() for name in arguments.sides.split(",")]
    if unknown := [name for name in names if name not in EXECUTORS]:
        raise KontextError(f"--sides takes {', '.join(EXECUTORS)}; not {', '.join(map(repr, unknown))}")
    result = measure_executors(
        arguments.bundle,
        arguments.checkpoint,
        names,
        arguments.quantized,
        warmup=arguments.warmup,
        **edit_settings(arguments),
    )
    finish(result, tables(result), footer(result), arguments.json)


def measure_executors(
    bundle: Path,
    checkpoint: Path,
    names: Sequence[str],
    quantized: Sequence[Path],
    *,
    steps: int,
    guidance: float,
    seed: int,
    size: tuple[int, int] | None,
    repeat: int,
    warmup: int,
    image: Path | None = None,
    prompt: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Times `repeat` edits of each side after `warmup`. Pictures are compared with the first side's.

    Args:
        bundle: what ONNX Runtime and OpenVINO run.
        checkpoint: the diffusers folder that it was exported from.
        names: keys of `EXECUTORS`.
        quantized: further bundles, for OpenVINO in bf16.
        steps, guidance, seed, size, image, prompt: as in `coldstart.measure_coldstart`.
        repeat, warmup: edits of each side.
        progress: show a bar.
    """
    chosen = output_size(bundle, size)
    picture, words = picture_and_prompt(image, prompt, chosen)
    settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed, "size": chosen}
    bf16 = EXECUTORS["openvino-bf16"]
    sides = {name: (EXECUTORS[name], bundle) for name in names}
    sides |= {f"openvino-bf16 {each.name}": (bf16, each) for each in quantized}
    edits = {}
    for name, (executor, folder) in sides.items():
        timer = StageTimer()
        edit = prepare(executor, checkpoint if executor.backend == "diffusers" else folder, timer)
        edits[name] = partial(timed_edit, partial(edit, picture, words, **settings), timer)
    with tqdm(total=len(sides) * (warmup + repeat), desc="edits", unit="edit", disable=not progress) as bar:
        runs = interleave(edits, repeat, warmup=warmup, done=bar.update)
    first = next(iter(runs))
    return {
        "what": "executors",
        "model": Bundle.open(bundle).name,
        **settings,
        "sides": {
            name: {
                **{
                    stage: percentiles_of_runs([stages[stage] for stages, _ in runs[name]]).to_json()
                    for stage in ("step", "edit")
                },
                "psnr_db": None if name == first else round(psnr(runs[name][-1][1], runs[first][-1][1]), 1),
                "peak_bytes": peak_memory(executor, folder, picture, words, settings),
            }
            for name, (executor, folder) in sides.items()
        },
        "machine": describe_machine(),
    }


def prepare(executor: Executor, folder: Path, timer: StageTimer) -> Callable[..., Image.Image]:
    """A function that edits (picture, prompt, settings), with its steps timed as "step"."""
    if executor.backend == "diffusers":
        peer = diffusers_peer.load_pipeline(folder, device="cpu", compute=executor.compute)
        diffusers_peer.attach_timer(peer, timer, compiled=executor.compiled)
        return partial(diffusers_peer.edit, peer)
    options = OpenVINOOptions(compute=executor.compute) if executor.backend == "openvino" else "onnxruntime"
    pipe = Pipeline.load(folder, device="cpu", backend=options, low_memory=False, embedding_cache=0)
    pipe.backend = TimedBackend(pipe.backend, timer)
    return pipe.edit


def peak_memory(
    executor: Executor, folder: Path, picture: Image.Image, prompt: str, settings: dict[str, Any]
) -> int | None:
    """The peak of `kontext-edit` in bytes; None for diffusers."""
    if executor.backend == "diffusers":
        return None
    with temporary_folder("edit") as name:
        image, output = Path(name) / "in.png", Path(name) / "out.png"
        picture.save(image)
        width, height = settings["size"]
        flags = ["--image", str(image), "--prompt", prompt, "--output", str(output), "--device", "cpu"]
        flags += ["--size", f"{width}x{height}", "--backend", executor.backend]
        flags += [word for key in ("steps", "guidance", "seed") for word in (f"--{key}", str(settings[key]))]
        flags += ["--compute", executor.compute] if executor.backend == "openvino" else []
        return run_process([*edit_command(), str(folder), *flags]).peak_bytes


def tables(result: dict[str, Any]) -> list[Table]:
    """One row per side; the ratio is the first side's median edit over its own, above 1 where it is faster."""
    sides = result["sides"]
    first = next(iter(sides.values()))
    rows = [
        [
            name,
            *(milliseconds(side[stage][kind]) for stage in ("step", "edit") for kind in ("median", "p95")),
            ratio(side["edit"]["median"], first["edit"]["median"]),
            "-" if side["psnr_db"] is None else str(side["psnr_db"]),
            "-" if side["peak_bytes"] is None else mebibytes(side["peak_bytes"]),
        ]
        for name, side in sides.items()
    ]
    return [Table(["side", "step [ms]", "p95", "edit [ms]", "p95", "speed", "PSNR [dB]", "peak [MiB]"], rows)]


def footer(result: dict[str, Any]) -> str:
    width, height = result["size"]
    first, count = next((name, side["edit"]["count"]) for name, side in result["sides"].items())
    return (
        f"{result['steps']} steps at {width}x{height}, {count} edits a side, in turn. Speed and PSNR are relative to "
        f"{first}; peak memory is a whole process's.\n{machine_line(result['machine'])}"
    )
