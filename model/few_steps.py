"""Recognizes LoRAs that are distilled for few sampling steps, by their names.

A name may also count training steps, as trainers' checkpoints do (style-step00001000, style_8steps): those say nothing
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .source_names import GENERIC_NAMES

STEP_COUNTS = (1, 2, 4, 6, 8, 12, 16)
"""What LoRAs are distilled for."""

DISTILLED = re.compile(
    r"(?<![a-z])(?:hyper(?:flux|sd)?|turbo|lightning|schnell|lcm|distill(?:ed|ation)?|tcd|pcm|flash|dmd|"
    r"few(?:[-_ ]?steps?)?)(?![a-z])|hyper[-_ .]?flux|turbo[-_ .]?alpha"
)
"""Words that say that a number of steps is one of sampling; in lower case, with words of CamelCase parted."""

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
    """Sampling steps by the names of a LoRA's file, folder and metadata; None unless they are unmistakable: a number of
    steps that LoRAs are distilled for, in a name that also says that it is distilled."""
    for what, name in names_of(path, metadata):
        count = count_of(name, metadata)
        if count in STEP_COUNTS and is_distilled(name):
            return FewSteps(count, f"{what} {name}")
        if count is None and TURBO_ALPHA.search(name):
            return FewSteps(8, f"{what} {name}")
    return None


def unclear_steps(path: Path, metadata: Mapping[str, object]) -> str | None:
    """What to say of a name with a number of steps that may be those of training; None if there is none."""
    if guess_steps(path, metadata) is None:
        for what, name in names_of(path, metadata):
            count = count_of(name, metadata)
            if count is not None and (count in STEP_COUNTS or is_distilled(name)):
                return (
                    f"{what} {name} may not mean sampling steps and was not applied: add --steps {count} if it is "
                    "distilled for them"
                )
    return None


def count_of(name: str, metadata: Mapping[str, object]) -> int | None:
    """The number of steps in a name, 1 or more, unless it is known to be one of training."""
    trained = {str(metadata.get(key)) for key in ("ss_steps", "ss_max_train_steps")}
    found = COUNT.search(name)
    if not found or TRAINING.search(name[: found.start()]) or found[1].lstrip("0") in ("", *trained):
        return None
    return int(found[1])


def is_distilled(name: str) -> bool:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return any(DISTILLED.search(text.lower()) for text in (name, parted))


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
