"""Edits as other people say and draw them: the same edit with other words and another hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .edits import Edit, Instruction, sample_edit
from .hands import HELD_OUT, Hand, sample_hand
from .scenes import Scene
from .wordings import loosened, phrased

REWORDED, LOOSENED, REDRAWN = 0.5, 0.6, 0.6
"""Shares of the training's edits that get another phrasing, looser words, and another hand."""


def reworded(edit: Edit, dice: random.Random, held_out: bool = False) -> Edit:
    """The edit in another phrasing, of training's or of the held-out ones."""
    said = edit.instruction
    text = phrased(said.template, dict(said.words), dice, held_out)
    return replace(edit, instruction=replace(said, text=text))


def redrawn(edit: Edit, hand: Hand) -> Edit:
    """The edit's scenes drawn by a hand; what wears the picture before need not be in the answer."""
    source: Scene | None = None if edit.source is None else replace(edit.source, hand=hand)
    return replace(edit, source=source, target=replace(edit.target, hand=hand.unworn()))


def varied_edit(rng: np.random.Generator, kind: str | None = None) -> Edit:
    """A training edit with random words and hand, often the usual ones. Text-to-image is always drawn by the usual
    hand: nothing says another."""
    edit = sample_edit(rng, split="train", kind=kind)
    dice = random.Random(int(rng.integers(1 << 62)))
    if dice.random() < REWORDED:
        edit = reworded(edit, dice)
    if dice.random() < LOOSENED:
        said: Instruction = edit.instruction
        edit = replace(edit, instruction=replace(said, text=loosened(said.text, dice)))
    if edit.source is not None and dice.random() < REDRAWN:
        edit = redrawn(edit, sample_hand(rng))
    return edit


def unfamiliar_edit(rng: np.random.Generator, kind: str | None = None) -> Edit:
    """A test edit in a held-out phrasing, drawn by the held-out hand."""
    edit = sample_edit(rng, split="test", kind=kind)
    return redrawn(reworded(edit, random.Random(int(rng.integers(1 << 62))), held_out=True), HELD_OUT)


def varied_prompts_corpus(count: int = 20_000, seed: int = 0) -> Iterator[str]:
    """`count` prompts as training sees them; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield varied_edit(rng).prompt
