"""Chains: each edit starts where the one before ended, and all are held out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from kontext.tiny.chains import sample_chain
from kontext.tiny.edits import is_held_out
from kontext.tiny.judge import judge
from kontext.tiny.regions import untouched
from kontext.tiny.scenes import render


def test_edits_follow_each_other() -> None:
    chains = [sample_chain(np.random.default_rng(seed)) for seed in range(20)]
    assert len({str(chain) for chain in chains}) == 20
    for chain in chains:
        assert [edit.kind for edit in chain] == ["recolour", "add", "move", "remove", "recolour"]
        assert all(is_held_out(edit.keys[0]) for edit in chain)
        assert all(before.target == after.source for before, after in pairwise(chain))
        for edit in chain:
            for scene in (edit.source, edit.target):
                assert scene is not None
                assert 2 <= len(scene.objects) <= 3
                for field in ("shape", "colour", "place"):
                    assert len({getattr(item, field) for item in scene.objects}) == len(scene.objects)
                assert scene.background not in [item.colour for item in scene.objects]


def test_training_s_chains_are_not_held_out() -> None:
    chain = sample_chain(np.random.default_rng(0), "train")
    assert not any(is_held_out(key) for edit in chain for key in edit.keys)


def test_the_correct_pictures_are_accepted_and_much_is_kept_to_the_end() -> None:
    for seed in range(3):
        chain = sample_chain(np.random.default_rng(seed))
        kept = np.logical_and.reduce([untouched(edit) for edit in chain])
        assert kept.mean() > 0.5
        for edit in chain:
            assert judge(render(edit.target), edit).success
            assert edit.source is not None
            assert not judge(render(edit.source), edit).success
