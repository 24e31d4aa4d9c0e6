"""Recognizes LoRAs that are distilled for few sampling steps, by their names.

A name may also count training steps, as trainers' checkpoints do (style-step00001000): those say nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MOST_STEPS = 16
"""Distilled LoRAs take 1 to 16 steps."""

GENERIC_NAMES = ("diffusion_pytorch_model", "pytorch_lora_weights", "adapter_model", "lora")
"""File names that say nothing about the LoRA; its folder's name is used instead."""

COUNT = re.compile(
    r"(?:(?<![a-z\d.])|(?<=hyper)|(?<=turbo)|(?<=lightning)|(?<=fast))"
    r"0?(\d{1,2})[-_ ]?steps?(?![a-z\d])(?![-_ ]*\d)",
    re.IGNORECASE,
)
"""8steps, 4-step. Not the 2 of style_v2-step00001000, nor the 16 of lora-16-step1500 and lora_16_steps_1500: no letter
before the number, no number after the word."""

TRAINING = re.compile(
    r"(?:rank|dim|alpha|epochs?|batch|after|every|checkpoint|ckpt|at)[-_ ]*$", re.IGNORECASE
)
"""Words before a number that make it another one than that of sampling steps."""

TURBO_ALPHA = re.compile(r"turbo[-_ .]?alpha", re.IGNORECASE)
"""alimama-creative's LoRA, for 8 steps."""

HYPER_FLUX = re.compile(r"hyper[-_ .]?flux", re.IGNORECASE)
HYPER_FLUX_WEIGHT = 0.125
"""ByteDance's model card fuses Hyper-FLUX at this weight."""


@dataclass(frozen=True)
class FewSteps:
    """Sampling steps that a LoRA is made for, and the text that says so."""

    count: int
    source: str


def guess_steps(path: Path, metadata: Mapping[str, object]) -> FewSteps | None:
    """Sampling steps by the names of a LoRA's file, folder and metadata; None unless they are unmistakable."""
    trained = {str(metadata.get(key)) for key in ("ss_steps", "ss_max_train_steps")}
    for what, name in names_of(path, metadata):
        found = COUNT.search(name)
        if found and 1 <= int(found[1]) <= MOST_STEPS and not TRAINING.search(name[: found.start()]):
            if found[1].lstrip("0") not in trained:
                return FewSteps(int(found[1]), f"{what} {name}")
        elif TURBO_ALPHA.search(name):
            return FewSteps(8, f"{what} {name}")
    return None


def names_of(path: Path, metadata: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What may name a LoRA, with a word for it; the best first."""
    yield "its name", path.stem
    if path.stem in GENERIC_NAMES:
        yield "its folder", path.parent.name
        for part in path.parts:
            if part.startswith("models--"):  # a snapshot in the hub's cache
                yield "its repository", part
    for key in ("modelspec.title", "ss_output_name"):
        if key in metadata:
            yield f"its {key}", str(metadata[key])


def weight_note(path: Path, weight: float) -> str | None:
    """Advice for a LoRA that wants another weight than the usual 1."""
    if abs(weight) < 0.5 or not HYPER_FLUX.search(path.stem):
        return None
    return f"Hyper-FLUX is made for weight {HYPER_FLUX_WEIGHT}: --lora {path.name}:{HYPER_FLUX_WEIGHT}"
