"""Time of a transformer's step with LoRAs beside that of a bundle without slots for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.lora import open_loras
from ..openvino_sides import OPENVINO
from ..quantspeed.benchmark import timed
from ..quantspeed.step import Array, open_side, transformer_step
from ..timing import Percentiles, interleave
from .files import write_loras

PLAIN, EMPTY = "without slots", "no LoRA"


def step_times(
    side: str,
    plain: Path,
    slots: Path,
    *,
    tokens: int,
    rank: int,
    repeat: int,
    warmup: int,
    done: Callable[[], object],
) -> dict[str, dict[str, Any]]:
    """Seconds of each case's steps in turn, and the median of their ratios to the step without slots in the same round.

    Args:
        side: what runs the bundles, one of `quantspeed.step.SIDES`.
        plain, slots: bundles of the same weights, the second with slots. LoRAs are written beside it.
        tokens: of the target, and of the reference.
        rank: of one LoRA, and of two together.
        done: called after each step.
    """
    halves = [slots.parent / f"half-{number}.safetensors" for number in range(2)]
    whole = slots.parent / "whole.safetensors"
    first = open_side(slots, side)
    assert first.bundle.lora_slots is not None
    for paths in ([whole], halves):
        write_loras(paths, first.bundle.lora_slots, rank)
    cases: dict[str, Sequence[Path]] = {
        EMPTY: [],
        f"a LoRA of rank {rank}": [whole],
        f"two of rank {rank // 2}": halves,
    }
    bare = open_side(plain, side)
    pipes = [first, bare]
    steps: dict[str, Callable[[], Array]] = {PLAIN: transformer_step(bare, tokens, bare.loras)}
    for name, files in cases.items():
        # OpenVINO compiles graphs of large bundles for the shapes of their inputs, and so for a rank.
        pipe = open_side(slots, side) if side in OPENVINO else first
        pipes.append(pipe)
        loras = open_loras(pipe.bundle, [(file, 1.0) for file in files])
        steps[name] = transformer_step(pipe, tokens, loras)
    seconds = interleave(
        {name: partial(timed, step) for name, step in steps.items()}, repeat, warmup=warmup, done=done
    )
    for pipe in pipes:  # the next side needs the memory
        pipe.backend.release("transformer")
    base = np.array(seconds[PLAIN])
    return {
        name: {
            "seconds": Percentiles.of(found).to_json(),
            "ratio": round(float(np.median(np.array(found) / base)), 4),
        }
        for name, found in seconds.items()
    }
