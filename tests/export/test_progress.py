"""Progress bars on stderr."""

from __future__ import annotations

import pytest

from kontext.export.progress import Progress


def test_every_bar_shows_its_name_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(True)
    with progress.bytes("weights", 2 << 20) as advance:
        advance(1 << 20)
    with progress.steps("graphs", 3) as advance:
        advance(2)
    with progress.phases("engine") as on_phase:
        on_phase("compile", 1, 4)
        shown = capsys.readouterr().err
    assert "weights" in shown
    assert "graphs" in shown
    assert "1/4" in shown
    assert "compile" in shown


def test_hidden_bars_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(False).phases("engine") as on_phase, Progress(False).steps("graphs", None) as advance:
        on_phase("compile", 1, 4)
        advance(1)
    assert capsys.readouterr() == ("", "")
