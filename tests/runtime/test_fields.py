"""Typed fields of JSON objects: what each kind takes, and faults that name the field by its path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.runtime.fields import Fields, refuse_control, whole_numbers
from kontext.runtime.manifest_ranges import MOST_CHARACTERS, RANGES


def fields(value: Any, name: str = "b") -> Fields:
    return Fields({"a": {name: value}}, "manifest.json: ").group("a")


@pytest.mark.parametrize("name", [name for name, (low, _) in RANGES.items() if type(low) is int])
def test_whole_numbers_in_their_ranges(name: str) -> None:
    low, high = RANGES[name]
    for value in (low, high):
        if type(value) is int:
            assert fields(value, name).whole(name) == value
    for wrong in (low - 1, high + 1, 1 << 70, float(low), True, "1", None, [1], {}, float("nan")):
        with pytest.raises(
            KontextError, match=rf"a\.{name} must be a whole number from {low} to {high}, not "
        ):
            fields(wrong, name).whole(name)


def test_a_least_value_of_its_own() -> None:
    assert fields(8, "size").whole("size", least=8) == 8
    with pytest.raises(
        KontextError, match=r"manifest\.json: a\.size must be a whole number from 8 to \d+, not 7"
    ):
        fields(7, "size").whole("size", least=8)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(KontextError) as caught:
        fields("x" * 100, "steps").whole("steps")
    assert str(caught.value).endswith(f"not '{'x' * 39}")
    with pytest.raises(KontextError, match="not a number of 40001 bits"):  # Python prints no such number
        fields(1 << 40_000, "steps").whole("steps")


@pytest.mark.parametrize("value", [0, -2, 1.5, 1000, -1000.0])
def test_numbers(value: float) -> None:
    found = fields(value, "guidance").number("guidance")
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [1001, -1000.1, float("nan"), float("inf"), True, "1", None, []])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(
        KontextError, match=r"manifest\.json: a\.guidance must be a number from -1000 to 1000, not "
    ):
        fields(value, "guidance").number("guidance")


def test_texts() -> None:
    assert fields("x").text("b") == "x"
    assert fields("é" * MOST_CHARACTERS).text("b") == "é" * MOST_CHARACTERS
    for value in ("", 1, None, ["x"]):
        with pytest.raises(KontextError, match=r"manifest\.json: a\.b must be a non-empty string"):
            fields(value).text("b")
    with pytest.raises(KontextError, match="has 4097 characters"):
        fields("x" * (MOST_CHARACTERS + 1)).text("b")
    with pytest.raises(KontextError, match="is not valid Unicode"):
        fields("a\ud800").text("b")


def test_groups() -> None:
    assert fields({"steps": 1}).group("b").whole("steps") == 1
    for value in (None, [], "x", 1):
        with pytest.raises(KontextError, match=r"manifest\.json: a\.b must be an object"):
            fields(value).group("b")
    with pytest.raises(KontextError, match=r"manifest\.json: a\.b\.c is missing"):
        fields({}).group("b").text("c")
    assert fields(None).get("b") is None  # null is a value


def test_lists_of_whole_numbers() -> None:
    assert fields([2, 4096], "axes_dim").wholes("axes_dim", 2) == (2, 4096)
    for value in ([2], [2, 2, 3], [1, 2], [4097, 2], [2, True], [2, 2.0], (2, 2), "12", None, [2, 1 << 70]):
        with pytest.raises(KontextError, match=r"a\.axes_dim must be 2 whole numbers from 2 to 4096"):
            fields(value, "axes_dim").wholes("axes_dim", 2)
    assert whole_numbers([0, 5], 2, KontextError, least=0) == (0, 5)
    with pytest.raises(KontextError, match="must be 1 whole numbers from 0"):
        whole_numbers([-1], 1, KontextError, least=0)


CONTROLS = (
    "\x00",
    "\t",
    "\n",
    "\r",
    "\x1b",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\ufeff",
)


@pytest.mark.parametrize("control", CONTROLS)
def test_control_characters_in_any_text(control: str) -> None:
    """All that `str.isprintable` refuses too; names and values, at any depth."""
    assert not control.isprintable()
    text = f"a{control}b"
    for data in ({"x": text}, {text: 1}, {"x": [1, {"y": [[text]]}]}, {"x": {"y": {text: None}}}):
        with pytest.raises(KontextError, match=re.escape(f"character U+{ord(control):04X}")) as caught:
            refuse_control(data, Path("manifest.json"))
        assert str(caught.value).isprintable()
    with pytest.raises(KontextError, match=r'^manifest\.json: the text "x+ has the control'):
        refuse_control({"x": "x" * 200 + control}, Path("manifest.json"))


def test_texts_that_can_be_seen() -> None:
    """Names of files have spaces of every width, emoji of several parts, and letters that Python does not know yet."""
    data = {"é": ["日本\u3000語", "a\u00a0b", "👩\u200d💻", "\ue000", "", 1, None, True, 1.5]}
    refuse_control(data, Path("manifest.json"))
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    refuse_control({"deep": deep}, Path("manifest.json"))
    while deep:  # Python would free it by recursion
        deep = deep.pop()
