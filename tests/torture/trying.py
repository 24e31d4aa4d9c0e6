"""Tries a reader on damaged files, in a process of its own and from outside of it: no signal, no hang, no traceback,
no 2 GB. What such a process prints are lines of JSON, one for each fault and one with counts at the end."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from kontext.errors import KontextError

SECONDS = 10
"""Of the processor, for one input: on a busy machine the clock counts what others take. ONNX Runtime and PyTorch may
use more than one processor, whose times add up."""

WAIT_SECONDS = 120
"""By the clock, for one input, which may also wait for something that never comes."""

MEMORY = 2 << 30
"""Bytes beyond those that healthy inputs take."""

MOST_FAULTS = 200
"""After so many the reader is not tried further."""


def limit_memory(address_space: int) -> None:
    """Ends this process before it takes the machine's memory. Bytes."""
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def used() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def verdict(read: Callable[[bytes], object], data: bytes) -> str:
    """What becomes of a file: "read", "refused", or a fault in words."""
    try:
        read(data)
    except KontextError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except BaseException:
        return traceback.format_exc(limit=-3)
    return "read"


def set_timers(processor: float, clock: float) -> None:
    """Seconds, after which a signal ends the process; 0 for never."""
    signal.setitimer(signal.ITIMER_PROF, processor)
    signal.setitimer(signal.ITIMER_REAL, clock)


def try_all(
    make: Callable[[int], bytes], read: Callable[[bytes], object], seeds: range, progress: Path
) -> None:
    """Reads the damaged file of every seed. The memory that this process has had by now counts as healthy: what is
    imported and allocated once should be there.

    Args:
        progress: a file that has the seed which is being read, for when this process is killed.
    """
    warnings.simplefilter("ignore")
    healthy = used()
    file = os.open(progress, os.O_WRONLY | os.O_CREAT)
    counts: Counter[str] = Counter()
    for seed in seeds:
        os.pwrite(file, b"%20d" % seed, 0)
        data = make(seed)
        set_timers(SECONDS, WAIT_SECONDS)
        found = verdict(read, data)
        set_timers(0, 0)
        if found in ("read", "refused"):
            counts[found] += 1
        else:
            print(json.dumps({"seed": seed, "fault": found}), flush=True)
        if used() > healthy + MEMORY:
            print(json.dumps({"seed": seed, "fault": f"{used() >> 20} MiB"}), flush=True)
            break
    print(json.dumps(counts), flush=True)


def in_processes(
    command: Callable[[int], Sequence[object]], inputs: range, progress: Path, *, silent: bool = False
) -> tuple[Counter[str], dict[int, str]]:
    """Runs a program that calls `try_all`, again after the input that ended it: counts, and faults by seed.

    Args:
        command: the program's words, for its first seed.
        progress: as in `try_all`.
        silent: nothing may be printed to stderr.
    """
    counts: Counter[str] = Counter()
    faults: dict[int, str] = {}
    first = inputs.start
    while first < inputs.stop and len(faults) < MOST_FAULTS:
        progress.unlink(missing_ok=True)
        done = subprocess.run(list(map(str, command(first))), capture_output=True, text=True, check=False)
        assert progress.exists(), done.stderr[-3000:]
        first = int(progress.read_text()) + 1
        if done.returncode != 0:
            ended = signal.Signals(-done.returncode).name if done.returncode < 0 else done.returncode
            faults[first - 1] = f"the process ended with {ended}: {done.stderr[-500:]}"
        elif silent and done.stderr:
            faults[first - 1] = f"printed by then: {done.stderr[-500:]}"
        for line in map(json.loads, done.stdout.splitlines()):
            if "fault" in line:
                faults[line["seed"]] = line["fault"]
            else:
                counts.update(line)
    return counts, faults
