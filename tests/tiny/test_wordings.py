"""Other words for instructions: every template has some, and none of the held-out ones is seen in training."""

from __future__ import annotations

import random
import string

import pytest

from kontext.tiny.phrases import TEMPLATES, with_articles
from kontext.tiny.wordings import HELD_OUT, TRAINING, loosened, mistyped, phrased


def fields(phrase: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(phrase) if name}


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_template_has_other_phrasings_with_its_own_words(template: str) -> None:
    usual = TEMPLATES[template]
    words = set().union(*map(fields, usual))
    for other in (TRAINING, HELD_OUT):
        for phrase in other[template]:
            assert fields(phrase) <= words, phrase
            assert phrase not in usual
    assert not set(TRAINING[template]) & set(HELD_OUT[template])
    # What must be known to make the edit is said: the new colour, the place, the other word.
    needed = words & {"new", "object", "objects", "changes", "word", "background"}
    if template == "move":
        assert all(fields(phrase) & {"to", "at"} for phrase in (*TRAINING[template], *HELD_OUT[template]))
    for phrase in (*TRAINING[template], *HELD_OUT[template]):
        assert needed <= fields(phrase), phrase


def test_held_out_phrasings_have_words_of_training_only() -> None:
    known = {
        word.strip(",.:").lower()
        for group in (TEMPLATES, TRAINING)
        for phrases in group.values()
        for phrase in phrases
        for word in phrase.split()
    }
    known |= {"please"}
    for phrases in HELD_OUT.values():
        for phrase in phrases:
            assert {word.strip(",.:").lower() for word in phrase.split()} <= known, phrase


def test_articles() -> None:
    assert (
        with_articles("draw a orange star on a blue background") == "draw an orange star on a blue background"
    )
    assert (
        phrased("add", {"object": "a orange star", "at": "at the top"}, random.Random(0), False).count(
            "an orange"
        )
        == 1
    )


def test_loosened_text_keeps_what_signs_say() -> None:
    for seed in range(300):
        text = loosened("replace the word STAR with TOP on the sign", random.Random(seed))
        assert "STAR" in text
        assert "TOP" in text


def test_loosened_text_is_repeatable_and_varied() -> None:
    said = "make the red circle purple"
    texts = [loosened(said, random.Random(seed)) for seed in range(200)]
    assert texts == [loosened(said, random.Random(seed)) for seed in range(200)]
    assert len(set(texts)) > 60
    assert 20 < sum("please" in text.lower() for text in texts) < 120
    assert not any(text.lower().startswith(("could you the", "please the")) for text in texts)


def test_slips_change_one_word_by_a_letter() -> None:
    said = "turn the background white"
    for seed in range(100):
        slipped = mistyped(said, random.Random(seed))
        assert abs(len(slipped) - len(said)) <= 1
        assert sum(one != other for one, other in zip(said.split(), slipped.split(), strict=True)) <= 1
        assert slipped.split()[1] == "the"
    assert mistyped("a b", random.Random(0)) == "a b"
