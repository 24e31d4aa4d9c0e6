"""Edits: the instruction determines the target, nothing else changes, and training never draws from the test split."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest

from kontext.tiny import draw, edits, scenes
from kontext.tiny.edits import GROUPS, KINDS, Edit, is_held_out, sample_edit

ALL = (*KINDS, "draw")


@lru_cache(maxsize=32)
def sampled(kind: str, split: str, count: int = 400) -> tuple[Edit, ...]:
    rng = np.random.default_rng(1)
    return tuple(sample_edit(rng, split, kind) for _ in range(count))


def test_seeds_reproduce() -> None:
    first = [sample_edit(np.random.default_rng(7)) for _ in range(20)]
    assert first == [sample_edit(np.random.default_rng(7)) for _ in range(20)]
    assert sample_edit(np.random.default_rng(7)) != sample_edit(np.random.default_rng(8))


def test_kinds_cover_kontexts_five_groups() -> None:
    assert set(GROUPS.values()) == {"local", "global", "text", "character", "style"}
    assert set(edits.TRAINING_SHARES) == set(ALL)
    assert sampled("move", "test")[0].group == "local"


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ALL)
def test_scenes_are_unambiguous(kind: str, split: str) -> None:
    for edit in sampled(kind, split):
        assert edit.kind == kind
        assert (edit.source is None) == (kind == "draw")
        assert edit.source != edit.target
        assert len(edit.prompt.split()) <= 16
        assert edit.prompt == " ".join(edit.prompt.split())
        for scene in (edit.source, edit.target):
            if scene is None:
                continue
            for field in ("shape", "colour", "place"):
                values = [getattr(item, field) for item in scene.objects]
                assert len(set(values)) == len(values)
            assert scene.background not in [item.colour for item in scene.objects]
            if scene.sign:
                assert all(scenes.PLACES[item.place][0] != scene.sign.row for item in scene.objects)
            if scene.character:
                assert scene.character.identity.colour != scene.background


@pytest.mark.parametrize("kind", ALL)
def test_train_and_test_share_no_combination(kind: str) -> None:
    train = {key for edit in sampled(kind, "train") for key in edit.keys}
    assert not any(is_held_out(key) for key in train)
    for edit in sampled(kind, "test"):
        assert any(is_held_out(key) for key in edit.keys)
        assert not set(edit.keys) <= train


def test_mixed_training_never_yields_a_held_out_combination() -> None:
    rng = np.random.default_rng(2)
    counts: Counter[str] = Counter()
    for _ in range(5000):
        edit = sample_edit(rng)
        assert not any(is_held_out(key) for key in edit.keys)
        counts[edit.kind] += 1
    for kind, share in edits.TRAINING_SHARES.items():
        assert counts[kind] / 5000 == pytest.approx(share, abs=0.03)


def test_about_a_tenth_is_held_out() -> None:
    pairs = [("text", a, b) for a in edits.WORDS for b in edits.WORDS if a != b]
    assert 0.05 < np.mean([is_held_out(key) for key in pairs]) < 0.2
    places = [("add", s, c, p) for s in draw.SHAPES for c in scenes.COLOURS for p in scenes.PLACES]
    assert 0.05 < np.mean([is_held_out(key) for key in places]) < 0.2


def test_training_sees_every_single_word_as_old_and_as_new() -> None:
    words = {"old": set[str](), "new": set[str]()}
    rng = np.random.default_rng(3)
    for _ in range(3000):
        _, old, new = sample_edit(rng, kind="text").keys[0]
        words["old"].add(old)
        words["new"].add(new)
    assert words["old"] == words["new"] == set(edits.ALL_TEXTS)


def test_training_sees_every_shape_colour_and_place() -> None:
    for kind, position, values in (
        ("recolour", 1, draw.SHAPES),
        ("recolour", 3, tuple(scenes.COLOURS)),
        ("add", 2, tuple(scenes.COLOURS)),
        ("add", 3, tuple(scenes.PLACES)),
        ("move", 3, tuple(scenes.PLACES)),
        ("background", 2, tuple(scenes.BACKGROUNDS)),
        ("effect", 1, scenes.EFFECTS),
        ("style", 1, scenes.STYLES),
        ("character", 2, draw.BODIES),
        ("character", 3, draw.HEADS),
    ):
        assert {edit.keys[0][position] for edit in sampled(kind, "train")} == set(values)


@pytest.mark.parametrize("kind", ["recolour", "add", "remove", "move"])
def test_local_edits_change_one_object(kind: str) -> None:
    for edit in sampled(kind, "train"):
        assert edit.source is not None
        assert replace(edit.target, objects=()) == replace(edit.source, objects=())
        before, after = set(edit.source.objects), set(edit.target.objects)
        assert (len(before - after), len(after - before)) == {"add": (0, 1), "remove": (1, 0)}.get(
            kind, (1, 1)
        )
        (item,) = (after - before) or (before - after)
        assert item.shape in edit.prompt
        if kind in ("recolour", "add"):
            assert item.colour in edit.prompt
        if kind in ("move", "add"):
            assert edit.prompt.endswith((edits.AT[item.place], edits.TO[item.place]))


def test_global_and_text_edits_change_one_field() -> None:
    for edit in sampled("background", "train"):
        assert edit.source is not None
        assert replace(edit.target, background=edit.source.background) == edit.source
        assert edit.target.background in edit.prompt
    for edit in sampled("effect", "train"):
        assert replace(edit.target, effect=None) == edit.source
    for edit in sampled("text", "train"):
        assert edit.source is not None
        assert edit.source.sign is not None
        assert edit.target.sign is not None
        assert replace(edit.target, sign=edit.source.sign) == edit.source
        assert replace(edit.target.sign, word=edit.source.sign.word) == edit.source.sign
        assert {edit.source.sign.word, edit.target.sign.word} <= set(edit.prompt.split())


def test_a_character_keeps_its_identity_and_what_is_not_named() -> None:
    for edit in sampled("character", "train"):
        assert edit.source is not None
        before, after = edit.source.character, edit.target.character
        assert before is not None
        assert after is not None
        assert before.identity == after.identity
        assert (edit.source.background != edit.target.background) == ("background" in edit.prompt)
        assert (before.pose != after.pose) == any(word in edit.prompt for word in edits.POSE_WORDS.values())
        named = any(edits.AT[place] in edit.prompt for place in scenes.CHARACTER_PLACES)
        assert (before.place != after.place) == named


def test_a_style_is_carried_over() -> None:
    for edit in sampled("style", "train"):
        assert edit.source is not None
        assert (edit.source.style, edit.source.background) == (edit.target.style, edit.target.background)
        for item in edit.target.objects:
            assert f"{item.colour} {item.shape}" in edit.prompt


def test_the_same_source_and_prompt_have_one_target() -> None:
    targets: dict[tuple[scenes.Scene | None, str], scenes.Scene] = {}
    rng = np.random.default_rng(4)
    for _ in range(5000):
        edit = sample_edit(rng)
        assert targets.setdefault((edit.source, edit.prompt), edit.target) == edit.target


def test_every_prompt_is_grammatical_about_articles() -> None:
    for prompt in edits.all_prompts_corpus(5000):
        words = prompt.split()
        for article, word in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), prompt


def test_the_test_split_draws_all_kinds_equally_often() -> None:
    rng = np.random.default_rng(5)
    counts = Counter(sample_edit(rng, "test").kind for _ in range(1800))
    assert set(counts) == set(KINDS)
    assert all(140 < count < 260 for count in counts.values())


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match='"train" or "test", not \'validation\''):
        sample_edit(np.random.default_rng(0), split="validation")


def test_no_torch_is_imported() -> None:
    code = "import sys, kontext.tiny.judge, kontext.tiny.contact; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_black_and_white_always_shows() -> None:
    for edit in sampled("effect", "train"):
        assert edit.source is not None
        change = scenes.render(edit.source).astype(int) - scenes.render(edit.target)
        assert (np.abs(change).max(axis=2) > 24).sum() > 100, edit
