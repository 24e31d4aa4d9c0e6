"""Ctrl-C while a command starts, runs or ends: one line or none, never a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from kontext.entry_points import MODULES

INSTANTS = 8
"""For each command; tests/torture has more."""


def start(name: str, *words: str) -> subprocess.Popen[str]:
    """The command, which says "ready" on stdout when it begins to import: what Python does before that is not ours."""
    code = (
        "import sys; from kontext import entry_points\n"
        "def load(name, load=entry_points.load):\n    print('ready', flush=True)\n    return load(name)\n"
        f"entry_points.load = load; sys.exit(entry_points.{name}())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("name", list(MODULES))
def test_control_c_at_any_instant_is_one_line(name: str) -> None:
    began = time.monotonic()
    start(name, "--help").communicate(timeout=60)
    whole = time.monotonic() - began
    for instant in range(INSTANTS):
        process = start(name, "--help")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.001 + whole * instant / INSTANTS)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        # At its very end Python leaves the signal to the system; a command may say how it goes on.
        line, _, _ = errors.partition(";")
        assert (process.returncode, line.strip()) in ((0, ""), (-signal.SIGINT, ""), (130, "interrupted"))
        assert errors.count("\n") in (0, 2)


def test_a_command_in_the_background_still_ignores_it() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from kontext import entry_points\n"
        "entry_points.load = lambda name: lambda: signal.raise_signal(signal.SIGINT) or 7\n"
        "raise SystemExit(entry_points.edit())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("name", list(MODULES))
def test_each_command_runs(name: str) -> None:
    out, errors = start(name, "--version").communicate(timeout=60)
    assert out.startswith("ready\nkontext-export ")
    assert errors == ""
