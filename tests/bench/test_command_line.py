"""The bench's command lines: one parser, one way to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.bench.command_line import exit_code, module_parser, show
from kontext.bench.report import Table
from kontext.errors import KontextError


def failing(fault: BaseException) -> int:
    raise fault


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (KontextError("the\nfile is torn"), 2, "error: the file is torn\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_ends_a_command(
    fault: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: failing(fault)) == code
    assert capsys.readouterr().err == said


def test_a_command_that_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: show([Table(["a", "b"], [["x", "1"]])], "measured here")) == 0
    assert exit_code(lambda: 1) == 1
    out = capsys.readouterr().out
    assert out.startswith("a  b\n")
    assert out.endswith("\n\nmeasured here\n")


def test_a_parser_is_described_by_its_module() -> None:
    parser = module_parser("engines", "Engines at full size: `python -m …`.\n\nMore.")
    assert (parser.prog, parser.description) == (
        "python -m kontext.bench.fullsize.engines",
        "Engines at full size",
    )
    assert parser.parse_args(["--json", "x"]).json == Path("x")
