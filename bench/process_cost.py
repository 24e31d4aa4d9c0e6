"""Wall time and peak memory of a whole process, and how to start this package's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..child_process import module_command
from ..errors import KontextError
from ..temporary_folder import temporary_folder

# A child's ru_maxrss starts at what its parent held when it forked (Linux keeps the old address space's high-water mark
# over exec). So a bare interpreter of about 10 MB stands between this process, which may hold torch, and the child.
_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
with open(sys.argv[1], "w") as file:
    json.dump({"seconds": seconds, "peak": usage.ru_maxrss, "code": os.waitstatus_to_exitcode(status)}, file)
"""


@dataclass(frozen=True)
class ProcessCost:
    """What a process took from start to end."""

    seconds: float
    peak_bytes: int
    """Peak resident memory, pages of mapped files included."""


def run_process(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> ProcessCost:
    """Runs `command` to its end and measures it; `environment` is added to this process's.

    Raises:
        KontextError: it failed; the message has its exit code and the last five lines of its output.
    """
    with temporary_folder("process") as folder:
        record = Path(folder) / "cost.json"
        finished = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(record), *command],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        cost = json.loads(record.read_text()) if finished.returncode == 0 else {"code": finished.returncode}
    if cost["code"] != 0:
        tail = " | ".join(finished.stdout.strip().splitlines()[-5:])
        raise KontextError(f"`{' '.join(command)}` ended with code {cost['code']}: {tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return ProcessCost(seconds=cost["seconds"], peak_bytes=cost["peak"] * unit)


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
