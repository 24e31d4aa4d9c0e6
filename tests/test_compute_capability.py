"""Every spelling of a compute capability, and what is none."""

from __future__ import annotations

import pytest

from kontext.compute_capability import dotted, engine_target, parse_capabilities, parse_capability, sm_name
from kontext.errors import KontextError


@pytest.mark.parametrize("text", ["sm_89", "sm89", "SM 89", "sm-89", "8.9", "89", " sm_89a ", "sm_89f"])
def test_every_spelling(text: str) -> None:
    assert parse_capability(text) == 89


@pytest.mark.parametrize("capability", [75, 80, 89, 90, 100, 103, 120, 121])
def test_names_are_read_back(capability: int) -> None:
    for spell in (sm_name, engine_target, dotted):
        assert parse_capability(spell(capability)) == capability


@pytest.mark.parametrize("text", ["", "ada", "sm_", "9", "sm_8.9", "8.91", "sm_1200", "8,9", "sm_89b"])
def test_what_is_none(text: str) -> None:
    assert parse_capability(text) is None


def test_lists() -> None:
    assert parse_capabilities("sm86, 8.9,sm_86") == (86, 89)
    for text in ("", "sm_89;sm_120", "sm_89,", "ada"):
        with pytest.raises(KontextError, match=r"is not a GPU architecture such as sm_89 or 8\.9"):
            parse_capabilities(text)
