"""Typed fields of JSON objects: what each kind takes, and faults that name the field by its path."""

from __future__ import annotations

from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.runtime.fields import Fields, whole_numbers


def fields(value: Any) -> Fields:
    return Fields({"a": {"b": value}}, "manifest.json: ").group("a")


@pytest.mark.parametrize("value", [1, 7, 2**70])
def test_whole_numbers(value: int) -> None:
    assert fields(value).whole("b") == value
    assert fields(0).whole("b", least=0) == 0
    assert fields(8).whole("b", least=8) == 8


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None, [1], {}])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(KontextError) as caught:
        fields(value).whole("b")
    assert str(caught.value) == f"manifest.json: a.b must be a whole number of at least 1, not {value!r}"


def test_a_long_value_is_cut() -> None:
    with pytest.raises(KontextError) as caught:
        fields("x" * 100).whole("b", least=3)
    assert str(caught.value).endswith(f"at least 3, not '{'x' * 39}")


@pytest.mark.parametrize("value", [0, -2, 1.5, 9.9e29, -9.9e29])
def test_numbers(value: float) -> None:
    found = fields(value).number("b")
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [1e30, -1e30, float("nan"), float("inf"), True, "1", None, []])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(KontextError, match=r"manifest\.json: a\.b must be a number, not "):
        fields(value).number("b")


def test_texts() -> None:
    assert fields("x").text("b") == "x"
    for value in ("", 1, None, ["x"]):
        with pytest.raises(KontextError, match=r"manifest\.json: a\.b must be a non-empty string"):
            fields(value).text("b")


def test_groups() -> None:
    assert fields({"c": 1}).group("b").whole("c") == 1
    for value in (None, [], "x", 1):
        with pytest.raises(KontextError, match=r"manifest\.json: a\.b must be an object"):
            fields(value).group("b")
    with pytest.raises(KontextError, match=r"manifest\.json: a\.b\.c is missing"):
        fields({}).group("b").text("c")
    assert fields(None).get("b") is None  # null is a value


def test_lists_of_whole_numbers() -> None:
    assert fields([1, 2]).wholes("b", 2) == (1, 2)
    for value in ([1], [1, 2, 3], [0, 1], [1, True], [1, 2.0], (1, 2), "12", None):
        with pytest.raises(KontextError, match=r"manifest\.json: a\.b must be 2 positive whole numbers"):
            fields(value).wholes("b", 2)
    assert whole_numbers([0, 5], 2, KontextError, least=0) == (0, 5)
    with pytest.raises(KontextError, match="must be 1 whole numbers"):
        whole_numbers([-1], 1, KontextError, least=0)
