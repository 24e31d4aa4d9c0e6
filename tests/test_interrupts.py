"""Interrupts that come where Python drops exceptions, and what is cleaned up after others."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kontext.interrupts import interrupts

CALLBACKS = {
    "fork": (
        "signal.raise_signal(number) if armed else None\n",
        "import os; os.register_at_fork(before=callback)\n",
        "armed = True; subprocess.run(['true'], preexec_fn=int); armed = False\n",
    ),
    "__del__": (
        "signal.raise_signal(number)\n",
        "class Thing:\n    def __del__(self):\n        callback()\nthing = Thing()\n",
        "del thing\n",
    ),
    "weakref": (
        "signal.raise_signal(number)\n",
        "import weakref\nclass Thing: pass\nthing = Thing()\nreference = weakref.ref(thing, lambda _: callback())\n",
        "del thing\n",
    ),
}


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", CALLBACKS)
def test_an_interrupt_in_a_callback_of_python_is_not_lost(where: str, number: int, tmp_path: Path) -> None:
    """Python prints "Exception ignored in" there, and goes on."""
    body, prepare, trigger = CALLBACKS[where]
    code = (
        "import signal, subprocess, sys, time; from pathlib import Path\n"
        "from kontext.command import run_command; from kontext.temporary_folder import temporary_folder\n"
        f"number, armed = {int(number)}, False\n"
        f"def callback():\n    {body}"
        f"{prepare}"
        "def work():\n"
        "    global armed, thing\n"
        "    with temporary_folder('test', Path(sys.argv[1])):\n"
        f"        {trigger}"
        "        time.sleep(300)\n"
        "sys.exit(run_command(work))\n"
    )
    done = run(code, str(tmp_path))
    assert (done.returncode, done.stderr) == (128 + number, "\ninterrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_other_exceptions_in_callbacks_are_printed_as_before() -> None:
    code = (
        "from kontext.interrupts import interrupts\n"
        "class Thing:\n    def __del__(self):\n        raise ValueError('x')\n"
        "with interrupts():\n    Thing()\n"
    )
    assert "ValueError: x" in run(code).stderr


def test_another_thread_has_none() -> None:
    def work() -> None:
        with interrupts():
            ran.append(1)

    ran: list[int] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [1]


def test_handlers_of_others_are_kept() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupts():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
