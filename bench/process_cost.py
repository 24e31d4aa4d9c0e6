"""Wall time and memory of a whole process, at its peak and over time, and how to start this package's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..child_process import module_command
from ..errors import KontextError
from ..temporary_folder import temporary_folder

# A child's ru_maxrss starts at what its parent held when it forked (Linux keeps the old address space's high-water mark
# over exec). So a bare interpreter of about 10 MB stands between this process, which may hold torch, and the child.
_LAUNCHER = """
import json, os, sys, time
record, interval, command = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
page, memory = os.sysconf("SC_PAGE_SIZE"), []
start = time.perf_counter()
pid = os.posix_spawnp(command[0], command, os.environ)
while interval > 0:
    ended, status, usage = os.wait4(pid, os.WNOHANG)
    if ended:
        break
    with open(f"/proc/{pid}/statm") as file:
        size = int(file.read().split()[1]) * page
    if size > 0:  # not just ended
        memory.append((time.perf_counter() - start, size))
    time.sleep(interval)
else:
    _, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
with open(record, "w") as file:
    json.dump({"seconds": seconds, "peak": usage.ru_maxrss, "code": code, "memory": memory}, file)
"""

MOST_SAMPLES = 240
"""Of memory over time; of more, each run of neighbours becomes its largest."""


@dataclass(frozen=True)
class ProcessCost:
    """What a process took from start to end."""

    seconds: float
    peak_bytes: int
    """Peak resident memory, pages of mapped files included."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the start, resident bytes), if it was asked for."""


def run_process(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, sample_seconds: float = 0
) -> ProcessCost:
    """Runs `command` to its end and measures it; `environment` is added to this process's.

    With `sample_seconds` its memory is read that often (Linux), and its end may be noticed as much later.

    Raises:
        KontextError: it failed; the message has its exit code and the last five lines of its output.
    """
    with temporary_folder("process") as folder:
        record = Path(folder) / "cost.json"
        finished = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(record), str(sample_seconds), *command],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        cost: dict[str, Any] = {"code": finished.returncode}
        if finished.returncode == 0:
            cost = json.loads(record.read_text())
    if cost["code"] != 0:
        tail = " | ".join(finished.stdout.strip().splitlines()[-5:])
        raise KontextError(f"`{' '.join(command)}` ended with code {cost['code']}: {tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return ProcessCost(cost["seconds"], cost["peak"] * unit, thinned(cost["memory"]))


def thinned(samples: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """At most MOST_SAMPLES of them: the largest of each run of neighbours."""
    run = -(-len(samples) // MOST_SAMPLES) or 1
    parts = (samples[start : start + run] for start in range(0, len(samples), run))
    return [
        (round(seconds, 3), size) for seconds, size in (max(part, key=lambda each: each[1]) for part in parts)
    ]


def own_command(script: str, module: str) -> list[str]:
    """How to start one of this package's commands: its script beside this interpreter, else `python -m module`."""
    path = Path(sys.executable).with_name(script)
    return [str(path)] if path.is_file() else module_command(module)


def export_command() -> list[str]:
    return own_command("kontext-export", "kontext.export.cli.main")


def edit_command() -> list[str]:
    return own_command("kontext-edit", "kontext.runtime.cli")


def with_cache(folder: Path, command: list[str]) -> list[str]:
    """`command` with `folder` as its cache folder instead of the user's."""
    return ["env", f"XDG_CACHE_HOME={folder}", *command]
