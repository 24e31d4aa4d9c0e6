"""Reads damaged files, as `test_readers` asks: READER FIRST LAST BASE SCRATCH. Prints lines of JSON, one for each fault
and one at the end; SCRATCH/seed has the seed that is being read, for when this process is killed."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from readers import READERS, Reader

from kontext.errors import KontextError

SECONDS = 10
MEMORY = 2 << 30
SAFE_MEMORY = 8 << 30
"""Address space, for the sake of the machine."""


def used() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def damaged(reader: Reader, name: str, seed: int) -> bytes:
    return reader.make(random.Random(f"{name} {seed}"))


def verdict(reader: Reader, data: bytes) -> str:
    """What becomes of a file: "read", "refused", or a fault in words."""
    try:
        reader.read(data)
    except KontextError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except BaseException:
        return traceback.format_exc(limit=-3)
    return "read"


def main(name: str, first: int, last: int, base: Path, scratch: Path) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (SAFE_MEMORY, SAFE_MEMORY))
    reader = READERS[name](base, scratch)
    for seed in range(5):  # imports, and what is allocated once
        verdict(reader, damaged(reader, name, -1 - seed))
    healthy = used()
    file = os.open(scratch / "seed", os.O_WRONLY | os.O_CREAT)
    counts: Counter[str] = Counter()
    for seed in range(first, last):
        os.pwrite(file, b"%20d" % seed, 0)
        data = damaged(reader, name, seed)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # its signal ends the process
        found = verdict(reader, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if found in ("read", "refused"):
            counts[found] += 1
        else:
            print(json.dumps({"seed": seed, "fault": found}), flush=True)
        if used() > healthy + MEMORY:
            print(json.dumps({"seed": seed, "fault": f"{used() >> 20} MiB"}), flush=True)
            break
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
