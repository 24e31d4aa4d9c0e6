"""What users say about sizes and references."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.runtime.reference_options import SIZE_RULES, parse_rule, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024x768", (1024, 768)), ("1X2", (1, 2)), ("-5x0", (-5, 0)), ("1024", None), ("1x2x3", None)],
)
def test_sizes_in_words(text: str, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "auto ", "Output", "64 x 64", "١x٢"])
def test_what_is_no_rule_for_references(text: str) -> None:
    message = "the reference size must be auto, preferred, output or WIDTHxHEIGHT, not "
    with pytest.raises(KontextError, match=message):
        parse_rule(text)
    assert [parse_rule(rule) for rule in (*SIZE_RULES, "64x32")] == [*SIZE_RULES, (64, 32)]
