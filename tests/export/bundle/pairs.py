"""Two exports of the same OUT at once: `race_exports` starts them together and checks how each ended."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kontext.command import run_command
from kontext.export.bundle.folder_kind import BUNDLE

from .publishing import Scenario, exact, export, exported_text

LOSER = r"error: (another export is writing|another process is using|.* exists: give --force).*\n"
"""What the one prints that does not win."""


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code, and what it printed on stderr."""

    code: int
    error: str


def race(actions: Sequence[Callable[[], object]], seed: int, spread: float) -> list[End]:
    """Runs actions as commands, each in a fork of this process.

    Args:
        actions: to start together.
        seed: of the moments at which they start.
        spread: seconds within which they start, at random.
    """
    random_source = random.Random(seed)
    start = time.monotonic() + 0.02
    runners = [begin(action, start + random_source.uniform(0, spread)) for action in actions]
    return [finish(*runner) for runner in runners]


def race_exports(parent: Path, seed: int, force: bool) -> list[int]:
    """Two exports of one OUT in the new folder `parent`, with `force` over an old one; their exit codes, sorted.

    One wins, the other does too or gets one line and exit code 2, and nothing is lost or left over: what is not
    published can be resumed, and a third export finds nothing in its way.
    """
    scenario = Scenario(
        "pair", BUNDLE, export, exported_text, before="before" if force else None, force=force
    )
    output = scenario.start(parent)
    ends = race(
        [lambda text=text: export(output, text, force) for text in ("first", "second")], seed, spread=0.02
    )
    won = [text for text, end in zip(("first", "second"), ends, strict=True) if end.code == 0]
    assert won, ends
    assert force or len(won) == 1, ends
    assert exported_text(output) in won, (exported_text(output), ends)
    assert exact(output, BUNDLE) == []
    for end in ends:
        if end.code:
            assert end.code == 2, end
            assert re.fullmatch(LOSER, end.error), end
        else:
            assert end.error == "", end
    assert {path.name for path in parent.iterdir()} <= {"out", "out.partial"}
    export(output, "third", True)
    assert exported_text(output) == "third"
    assert [path.name for path in parent.iterdir()] == ["out"]
    shutil.rmtree(parent)
    return sorted(end.code for end in ends)


def begin(action: Callable[[], object], at: float) -> tuple[int, int]:
    """Starts a process; its id, and a pipe from its stderr."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    code = 70
    try:
        os.dup2(write, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - until the process ends
        time.sleep(max(0.0, at - time.monotonic()))
        code = run_command(lambda: action() and None)
        sys.stderr.flush()
    finally:
        os._exit(code)


def finish(child: int, read: int) -> End:
    with open(read, encoding="utf-8") as pipe:
        error = pipe.read()
    _, status = os.waitpid(child, 0)
    return End(os.waitstatus_to_exitcode(status), error)
