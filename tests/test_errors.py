"""An error is one line, whatever it quotes."""

from __future__ import annotations

import unicodedata

import pytest

from kontext.errors import CONTROL, KontextError, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a b"),
        ("a\r\nb\tc\u2028d", "a  b c d"),
        ("\x1b[31mred\x1b[0m \x07", r"\x1b[31mred\x1b[0m \x07"),
        ("gnp\u202e.exe", r"gnp\u202e.exe"),
        ("two  spaces, é, 画像, 🙂", "two  spaces, é, 画像, 🙂"),
    ],
)
def test_what_acts_on_a_terminal_is_shown(text: str, shown: str) -> None:
    assert one_line(text) == str(KontextError(text)) == shown


@pytest.mark.parametrize("text", ["a" * 5000, "\u202e" * 5000, "\n" * 5000, "a" * 1000 + "\x1b" * 999])
def test_a_long_message_keeps_its_beginning_and_its_end(text: str) -> None:
    shown = one_line(f"first {text} last")
    assert len(shown) <= 2000
    assert shown.startswith("first ")
    assert shown.endswith(" last")
    assert " … " in shown


def test_unicode_says_what_a_control_character_is() -> None:
    """The oracle is Unicode's own table: control characters and separators of lines and paragraphs."""
    every = map(chr, range(0x110000))
    assert not [
        each for each in every if unicodedata.category(each) in ("Cc", "Zl", "Zp") and not CONTROL.match(each)
    ]
