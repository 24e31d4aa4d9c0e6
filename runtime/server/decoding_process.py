"""A process that decodes pictures for the server, so that what a file does to a decoder ends with this process.

It reads a line of JSON and a file on its standard input and answers, on its standard output, with a line of JSON and
the pixels; then the next. `decoding` starts it, and starts another when it has died.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import warnings
from typing import IO, Any

from ...errors import KontextError
from ..images import read_picture
from ..masks import to_grey
from ..rgb import upright_rgb

MEMORY_BYTES = 2 << 30
"""Address space of this process; a WebP file of 64 million pixels with transparency takes 1.3 GB."""


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers requests until there are no more. A request that takes longer than its `seconds` of processor time ends
    the process by a signal (SIGPROF), which no decoder can hold up."""
    for line in requests:
        request = json.loads(line)
        file = requests.read(request["bytes"])
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer, pixels = decode(file, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n" + pixels)
        answers.flush()


def decode(file: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The answer to a request: the picture's size and mode (RGB, of a mask L), what the caller is warned of, and the
    pixels; or an error."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            picture = read_picture(
                io.BytesIO(file),
                request["name"],
                formats=tuple(request["formats"]),
                max_pixels=request["max_pixels"],
                reduce=request["reduce"],
            )
            if request["mask"]:
                picture = to_grey(picture, holes=request["holes"])
            else:
                picture = upright_rgb(picture)
            pixels = picture.tobytes()
    except KontextError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": f"{request['name']} needs too much memory to decode"}, b""
    return {
        "size": picture.size,
        "mode": picture.mode,
        "warnings": [str(each.message) for each in caught],
    }, pixels


def limit() -> None:
    """Takes from this process what it does not need: memory without end, files, core dumps, its parent's death."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import ctypes
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit()
    serve(sys.stdin.buffer, answers)
