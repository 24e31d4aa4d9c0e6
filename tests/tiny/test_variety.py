"""Varied edits: the same edit in other words and by another hand, which the judge still knows."""

from __future__ import annotations

import numpy as np
import pytest

from kontext.tiny.edits import KINDS, in_split
from kontext.tiny.hands import HELD_OUT, USUAL
from kontext.tiny.judge import judge
from kontext.tiny.scenes import render
from kontext.tiny.variety import unfamiliar_edit, varied_edit, varied_prompts_corpus


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_are_accepted_and_sources_are_not(kind: str) -> None:
    """The judge knows the hand: it compares with the answer as that hand draws it."""
    rng = np.random.default_rng(list(kind.encode()))
    for draw in (varied_edit, unfamiliar_edit):
        for _ in range(2):
            edit = draw(rng, kind)
            assert edit.source is not None
            assert judge(render(edit.target), edit).success, edit
            assert not judge(render(edit.source), edit).success, edit


def test_training_sees_usual_and_other_edits_and_nothing_held_out() -> None:
    rng = np.random.default_rng(0)
    edits = [varied_edit(rng) for _ in range(400)]
    assert all(in_split(edit.keys, "train") for edit in edits)
    hands = {edit.target.hand for edit in edits}
    assert USUAL in hands
    assert len(hands) > 150
    assert not any(edit.target.hand.plain or edit.target.hand.other_palette for edit in edits)
    assert all(edit.target.hand == edit.target.hand.unworn() for edit in edits)
    assert all(edit.target.hand == USUAL for edit in edits if edit.source is None)


def test_unfamiliar_edits_are_of_the_test_split() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        edit = unfamiliar_edit(rng)
        assert in_split(edit.keys, "test")
        assert edit.target.hand == HELD_OUT


def test_corpus_is_repeatable() -> None:
    assert list(varied_prompts_corpus(50)) == list(varied_prompts_corpus(50))
