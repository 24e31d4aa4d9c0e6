"""Clocks: wall time and peak memory of a process, medians and 95th percentiles, stages of an edit.

Peers are measured in turn (A B A B …) in one run, so that what else the machine does falls on both alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import KontextError

Result = TypeVar("Result")

# A child's ru_maxrss starts at what its parent held when it forked (Linux keeps the old address space's
# high-water mark over exec). So a bare interpreter of about 10 MB stands between this process, which may hold
# torch, and the child.
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
    """What one process took, from its start to its end."""

    seconds: float
    peak_bytes: int
    """Peak resident memory, pages of mapped files included."""


def run_process(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> ProcessCost:
    """Runs `command` to its end and measures it.

    Raises KontextError, with the end of the command's output, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
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


@dataclass
class Clock:
    """Seconds of each stage of one edit, in the order they ran; a stage that runs N times has N entries."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    synchronize: Callable[[], object] | None = None
    """Waits for the device before each reading; None on CPU."""

    def now(self) -> float:
        if self.synchronize is not None:
            self.synchronize()
        return time.perf_counter()

    def add(self, stage: str, seconds: float) -> None:
        self.stages.setdefault(stage, []).append(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.add(name, self.now() - start)

    def wrap(self, name: str, call: Callable[..., Result]) -> Callable[..., Result]:
        """`call`, timed as stage `name`."""

        def timed(*args: Any, **kwargs: Any) -> Result:
            with self.stage(name):
                return call(*args, **kwargs)

        return timed


@dataclass(frozen=True)
class Summary:
    """Of repeated measurements of one thing."""

    median: float
    p95: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        if not values:
            raise ValueError("no values")
        return cls(float(np.median(values)), float(np.percentile(values, 95)), len(values))

    def to_json(self) -> dict[str, float]:
        return {"median": round(self.median, 6), "p95": round(self.p95, 6), "count": self.count}


def interleave(
    sides: Mapping[str, Callable[[], Result]],
    repeat: int,
    *,
    warmup: int = 0,
    done: Callable[[], object] | None = None,
) -> dict[str, list[Result]]:
    """Calls every side in turn, `warmup + repeat` rounds, and returns each side's last `repeat` results.

    `done` is called after each call (to move a progress bar).
    """
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for turn in range(warmup + repeat):
        for name, side in sides.items():
            result = side()
            if turn >= warmup:
                results[name].append(result)
            if done is not None:
                done()
    return results
