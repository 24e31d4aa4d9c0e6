"""Classifier-free guidance with a negative prompt, beside the guidance that the model takes as an input.

The network runs with both prompts as one batch, and the velocity is v = v_negative + scale * (v - v_negative), as with
`true_cfg_scale` in diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import KontextError
from .number_checks import checked_scale, checked_share

Array = NDArray[np.float32]


@dataclass(frozen=True)
class CfgOptions:
    """The arguments of `Pipeline.edit` for true CFG."""

    negative_prompt: str | Sequence[str] | None = None
    true_cfg: float = 1.0
    cfg_until: float = 1.0


@dataclass(frozen=True)
class TrueCfg:
    """True CFG of an edit: its scale, above 1, and the share of the steps that use it, from the first on."""

    scale: float
    until: float

    def guided(self, steps: int) -> int:
        """How many of `steps` steps use it: the nearest whole number, but one at least."""
        return max(1, math.floor(steps * self.until + 0.5))

    def combine(self, velocity: Array) -> Array:
        """The velocity [rows, tokens, channels] of the rows with their prompts, then with their negative ones."""
        positive, negative = np.split(velocity, 2)
        return negative + np.float32(self.scale) * (positive - negative)


def read_cfg(options: CfgOptions, prompts: int) -> tuple[TrueCfg | None, list[str | None], list[str]]:
    """The guidance that is asked for, the negative prompt of each prompt, and what the user should be warned of.

    Without a negative prompt, or at a scale of 1, there is none, as in diffusers, which does not say so.

    Raises:
        KontextError: a value out of range, or of another kind.
    """
    given, scale = options.negative_prompt, checked_scale(options.true_cfg, "true_cfg", least=1)
    until = checked_share(options.cfg_until, "cfg_until")
    negatives = negatives_of(given, prompts)
    if negatives is not None and scale > 1:
        return TrueCfg(float(scale), until), list(negatives), []
    notes = []
    if negatives is not None:
        notes.append("negative_prompt has no effect without a true_cfg above 1, such as 4")
    if scale > 1:
        notes.append(f'true_cfg {scale:g} has no effect without a negative_prompt, which may be empty ("")')
    elif until < 1:
        notes.append("cfg_until has no effect without a true_cfg above 1")
    return None, [None] * prompts, notes


def negatives_of(given: object, prompts: int) -> list[str] | None:
    """A negative prompt for each prompt; None if there is none."""
    if given is None:
        return None
    if isinstance(given, str):
        return [given] * prompts
    if isinstance(given, (bytes, bytearray)) or not isinstance(given, Sequence):
        raise KontextError(f"negative_prompt must be a text, or a list of texts, not {given!r}")
    for each in given:
        if not isinstance(each, str):
            raise KontextError(f"each negative prompt must be a text, not {each!r}")
    if len(given) != prompts:
        raise KontextError(
            f"negative_prompt is a list of {len(given)}, and there are {prompts} prompts: give one for each, or a text"
        )
    return list(given)
