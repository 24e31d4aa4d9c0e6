"""The edit that cards are planned for."""

from __future__ import annotations

import pytest

from kontext.bench.cli import main


@pytest.mark.parametrize("command", ["cards", "plans"])
@pytest.mark.parametrize(("flag", "least"), [("--batch", 1), ("--references", 0)])
def test_less_than_an_edit_is_refused(
    command: str, flag: str, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, flag, str(least - 1)]) == 2
    assert capsys.readouterr().err == f"error: {flag} must be at least {least}, not {least - 1}\n"
