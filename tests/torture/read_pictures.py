"""Reads damaged pictures, as `test_pictures` asks: FIRST LAST PROGRESS. Prints lines of JSON, one for each fault and
one at the end; PROGRESS is a file that has the seed which is being read, for when this process is killed."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutated_pictures import mutated, samples

from kontext.errors import KontextError
from kontext.runtime.images import read_picture
from kontext.runtime.rgb import upright_rgb

SECONDS = 10
MEMORY = 2 << 30
SAFE_MEMORY = 6 << 30
"""Address space, for the sake of the machine."""


def used() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def read(data: bytes) -> str:
    """What becomes of a file: "read", "refused", or a fault in words."""
    try:
        upright_rgb(read_picture(io.BytesIO(data), "it"))
    except KontextError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except BaseException:
        return traceback.format_exc(limit=-2)
    return "read"


def main(first: int, last: int, progress: str) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (SAFE_MEMORY, SAFE_MEMORY))
    samples()
    healthy = used()
    file = os.open(progress, os.O_WRONLY | os.O_CREAT)
    counts: Counter[str] = Counter()
    for seed in range(first, last):
        os.pwrite(file, b"%20d" % seed, 0)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # its signal ends the process
        _, data = mutated(seed)
        verdict = read(data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if verdict == "read" or verdict == "refused":
            counts[verdict] += 1
        else:
            print(json.dumps({"seed": seed, "fault": verdict}), flush=True)
        if used() > healthy + MEMORY:
            print(json.dumps({"seed": seed, "fault": f"{used() >> 20} MiB"}), flush=True)
            break
    print(json.dumps({"next": seed + 1, **counts}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
