"""Reading text: the wanted text of instructions, error rates by hand, and the real Tesseract."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from kontext.bench.edit_fidelity import text
from kontext.bench.edit_fidelity.known_edits import scene_edits
from kontext.bench.edit_fidelity.text import (
    edit_distance,
    error_rate,
    read_words,
    wanted_text,
    why_unreadable,
)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("change 'OPEN' to 'CLOSED'", "CLOSED"),
        ('Replace "good" with "bad day" on the sign', "bad day"),
        ("let the sign say \u201cHello\u201d, don't move it", "Hello"),
        ("change the text to read 'Café 24'", "Café 24"),
        ("write 'B' instead of 'A'", "B"),
        ("add the word 'SALE' in red", "SALE"),
        ("a sign that says 'GO' becomes one that says \u2018STOP\u2019", "STOP"),
        ("remove the word 'SALE'", None),
        ("it's John's dog, turn it into Anna's", None),
        ("make the car red", None),
    ],
)
def test_the_wanted_text_of_an_instruction(instruction: str, expected: str | None) -> None:
    assert wanted_text(instruction) == expected


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_levenshtein_s_distance(first: str, second: str, edits: int) -> None:
    assert edit_distance(first, second) == edits


@pytest.mark.parametrize(
    ("words", "wanted", "expected"),
    [
        (["CAT"], "cat", 0),
        (["H", "I"], "HI", 0),
        (["the", "shop", "is", "clos", "ed"], "CLOSED", 0),
        (["SKY."], "SKY", 1 / 3),
        (["C4T"], "CAT", 1 / 3),
        ([], "CAT", 1),
        (["something", "quite", "different"], "X", 1),
    ],
)
def test_error_rates_by_hand(words: list[str], wanted: str, expected: float) -> None:
    assert error_rate(words, wanted) == pytest.approx(expected)


def test_an_absent_tesseract_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TESSERACT", "no-such-program")
    assert why_unreadable() == "no-such-program is not installed (Debian: tesseract-ocr)"
    assert read_words(Image.new("RGB", (8, 8))) == []


@pytest.mark.skipif(why_unreadable() is not None, reason=str(why_unreadable()))
class TestTesseract:
    def test_it_reads_the_signs_that_edits_ask_for(self) -> None:
        edits = [edit for edit in scene_edits(4, 0) if edit.wanted]
        assert len(edits) == 4
        errors = []
        for edit in edits:
            assert edit.wanted is not None
            assert edit.target is not None
            errors.append(error_rate(edit.read(edit.target()), edit.wanted))
            source = edit.case.picture()
            assert source is not None
            assert error_rate(edit.read(source), edit.wanted) > 0
        assert sum(error == 0 for error in errors) >= 3

    def test_it_finds_words_in_a_picture(self) -> None:
        picture = Image.new("RGB", (700, 300), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((40, 30), "first line", fill="black", font_size=48)
        draw.text((260, 180), "CLOSED", fill="navy", font_size=64)
        assert error_rate(read_words(picture), "closed") == 0
        assert error_rate(read_words(picture), "open") > 0
