"""What LoRAs at run time cost: a step with them beside one without slots, and the time to change them.

A synthetic checkpoint of FLUX's width is exported with slots and without; steps are timed in turn (A B C D A B …). The
embedded model's LoRAs are changed for each other, and a large file is loaded beside a plain read of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import KontextError
from ...export.cli.source_flags import EMBEDDED
from ...model.config import KontextConfig
from ...model.diffusers_config import T5_TOKENS
from ...runtime.backends.openvino.device import has_bf16_units, is_installed
from ...temporary_folder import temporary_folder
from ..flags import at_least, parse_counts, parse_names
from ..fullsize import synthetic
from ..machine import describe_machine, machine_line, usable_cores
from ..process_cost import export_command, run_process
from ..quantspeed.benchmark import config_of
from ..quantspeed.step import SIDES
from ..report import Table, finish, milliseconds
from .steps import PLAIN, step_times
from .swaps import read_times, swap_times

TITLES = {
    "onnxruntime": "ONNX Runtime fp32",
    "openvino-fp32": "OpenVINO fp32",
    "openvino-bf16": "OpenVINO bf16",
}

BACKENDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
"""Those between whose steps LoRAs are changed."""

SWAPS = 9
"""Measured changes; they take milliseconds."""

READS = 3
"""Measured reads of the large file."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hidden", type=int, default=3072, help="hidden size, a multiple of 128 from 512 (3072)"
    )
    parser.add_argument("--blocks", default="1,1", metavar="D,S", help="double and single blocks (1,1)")
    parser.add_argument("--tokens", type=int, default=1024, help="target tokens, and reference tokens (1024)")
    parser.add_argument("--text-tokens", type=int, default=512, help="of the prompt (512)")
    parser.add_argument("--rank", type=int, default=32, help="of the slots and of all LoRAs together (32)")
    parser.add_argument("--repeat", type=int, default=7, help="measured steps per side (7)")
    parser.add_argument("--warmup", type=int, default=1, help="steps per side before timing starts (1)")
    parser.add_argument(
        "--sides",
        metavar="NAME,…",
        help=f"of {','.join(SIDES)} (those that are installed; bf16 if the processor has units for it)",
    )
    parser.add_argument("--file-mb", type=int, default=500, help="size of the large file (500)")
    parser.add_argument("--folder", type=Path, help="for the bundles, 6 GB (the system's temporary folder)")


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, repeat=1, warmup=0, hidden=512, tokens=16, rank=2, file_mb=1)
    blocks = parse_counts(arguments.blocks, "--blocks")
    if len(blocks) != 2:
        raise KontextError(f"--blocks takes two numbers, such as 1,2, not {arguments.blocks!r}")
    if not 2 <= arguments.text_tokens <= T5_TOKENS:
        raise KontextError(f"--text-tokens must be from 2 to {T5_TOKENS}, not {arguments.text_tokens}")
    sides = default_sides() if arguments.sides is None else parse_names(arguments.sides, "--sides", SIDES)
    result = measure_loras(
        sides,
        config_of(arguments.hidden, (blocks[0], blocks[1])),
        tokens=arguments.tokens,
        text_tokens=arguments.text_tokens,
        rank=arguments.rank,
        repeat=arguments.repeat,
        warmup=arguments.warmup,
        file_bytes=arguments.file_mb * 10**6,
        folder=arguments.folder,
        progress=sys.stderr.isatty(),
    )
    finish(result, tables(result), footer(result), arguments.json)


def default_sides() -> Sequence[str]:
    if not is_installed():
        return ["onnxruntime"]
    return [side for side in SIDES if side != "openvino-bf16" or has_bf16_units()]


def measure_loras(
    sides: Sequence[str],
    config: KontextConfig,
    *,
    tokens: int,
    text_tokens: int,
    rank: int,
    repeat: int,
    warmup: int,
    file_bytes: int,
    folder: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Steps of every side, with `tokens` target tokens and as many reference tokens; swaps; and reads.

    Raises:
        KontextError: `tokens`, `rank` or `folder` is not allowed, or the disk has too little space.
    """
    if tokens & (tokens - 1):
        raise KontextError(f"--tokens must be a power of two, not {tokens}")
    if rank % 2 or rank > 1024:
        raise KontextError(f"--rank must be even, for two LoRAs of half of it, and at most 1024, not {rank}")
    if folder is not None and not folder.is_dir():
        raise KontextError(f"--folder {folder} is not a folder")
    with temporary_folder("loras", folder) as root:
        size = synthetic.checkpoint_bytes(config)
        synthetic.check_disk_space(root, 5 * size + file_bytes)  # two bundles of fp32 beside bf16
        synthetic.write_checkpoint(root / "checkpoint", config, lambda _: None)
        exported = {
            "plain": [str(root / "checkpoint"), "--max-sequence-length", str(text_tokens)],
            "slots": [
                *(str(root / "checkpoint"), "--max-sequence-length", str(text_tokens)),
                *("--lora-slots", str(rank)),
            ],
            "embedded": [str(EMBEDDED), "--lora-slots", str(rank)],
        }
        for name, words in exported.items():
            (root / name).mkdir()
            output = ["-o", str(root / name / "bundle"), "--fp32", "--quiet"]
            run_process([*export_command(), *words, *output])
        plain, slots, embedded = (root / name / "bundle" for name in exported)
        with tqdm(total=4 * len(sides) * (warmup + repeat), desc="steps", disable=not progress) as bar:
            steps = {
                side: step_times(
                    side,
                    plain,
                    slots,
                    tokens=tokens,
                    rank=rank,
                    repeat=repeat,
                    warmup=warmup,
                    done=bar.update,
                )
                for side in sides
            }
        backends = [name for name in BACKENDS if name != "openvino" or is_installed()]
        swaps = {name: swap_times(name, embedded, rank=rank, repeat=SWAPS) for name in backends}
        reads = read_times(slots, size=file_bytes, repeat=READS)
    return {
        "what": "loras",
        "hidden": config.transformer.hidden_size,
        "blocks": [config.transformer.num_double_blocks, config.transformer.num_single_blocks],
        "tokens": [tokens, tokens, text_tokens],
        "rank": rank,
        "threads": usable_cores(),
        "steps": steps,
        "swaps": swaps,
        "file": reads,
        "machine": describe_machine(),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Steps, with the median of the ratios to the step without slots in the same round; changes; and the large file."""
    steps = [
        [
            f"{TITLES[side]}, {name}",
            milliseconds(case["seconds"]["median"]),
            milliseconds(case["seconds"]["p95"]),
            "-" if name == PLAIN else f"{100 * (case['ratio'] - 1):+.1f}%",
        ]
        for side, cases in result["steps"].items()
        for name, case in cases.items()
    ]
    swaps = [
        [
            BACKENDS[name],
            *(milliseconds(times[part]["median"]) for part in ("load", "first", "later")),
        ]
        for name, times in result["swaps"].items()
    ]
    file = result["file"]
    speeds = {name: file["bytes"] / each["median"] / 1e6 for name, each in file["seconds"].items()}
    reads = [
        ["plain read", *(f"{speeds[name]:.0f}" for name in ("read from the disk", "read"))],
        ["load_loras", *(f"{speeds[name]:.0f}" for name in ("load from the disk", "load"))],
    ]
    return [
        Table(["one step", "median [ms]", "p95", "beside a step without slots"], steps),
        Table(
            ["another LoRA, embedded model", "load_loras [ms]", "first step [ms]", "later steps [ms]"], swaps
        ),
        Table(
            [f"a LoRA of {file['bytes'] / 1e6:.0f} MB", "from the disk [MB/s]", "from the page cache [MB/s]"],
            reads,
        ),
    ]


def footer(result: dict[str, Any]) -> str:
    double, single = result["blocks"]
    target, reference, text = result["tokens"]
    cases = next(iter(result["steps"].values()))
    count = cases[PLAIN]["seconds"]["count"]
    return (
        f"Random weights, hidden size {result['hidden']}, {double} + {single} blocks, {target} + {reference} image and "
        f"{text} text tokens, slots and LoRAs of rank {result['rank']} on every linear, {result['threads']} threads, "
        f"{count} steps a side in turn; the share is the median over the rounds.\n{machine_line(result['machine'])}"
    )
