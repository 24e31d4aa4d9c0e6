"""Decodes pictures in processes that may die of them: a file can cost its own request, and no other.

`Decoders.decode` may be called by many threads. Each call has a process to itself, and waits for one if all are at
work.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...child_process import code_command
from ...errors import ComputationError, KontextError

PROCESSES = 2
"""Pictures that are decoded at a time; each process keeps 40 MB."""

SECONDS = 10
"""Processor time for one picture; JPEG of 64 million pixels takes 0.7 s, PNG 2 s."""

WALL_FACTOR = 6
"""How much longer by the clock it may take: other work may have the processor."""

CODE = "sys.path[:] = sys.argv[1:]; from kontext.runtime.server.decoding_process import main; main()"


@dataclass(frozen=True)
class Decoded:
    """A picture, upright and in 8-bit RGB, or a mask in 8-bit grey, and what its caller is warned of."""

    picture: Image.Image
    warnings: tuple[str, ...] = ()


class Decoders:
    """Processes that decode pictures; one that has died is replaced."""

    def __init__(self, processes: int = PROCESSES, seconds: float = SECONDS) -> None:
        """Raises ComputationError if no process can be started."""
        self.seconds = seconds
        self.free: queue.LifoQueue[Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self.free.put(Process())

    def decode(
        self,
        file: bytes,
        name: str,
        formats: Sequence[str],
        max_pixels: int,
        reduce: bool,
        mask: bool = False,
        holes: bool = False,
    ) -> Decoded:
        """A picture's file decoded, as `images.read_picture` and `rgb.upright_rgb` do it, or `masks.to_grey` a mask's
        (there is `holes` explained).

        Raises:
            KontextError: as theirs; or decoding takes too long, or ends the process.
            ComputationError: no process can be started.
        """
        process = self.free.get()
        try:
            if process is None or not process.works():
                process = Process()
            return process.decode(
                file,
                self.seconds,
                name=name,
                formats=list(formats),
                max_pixels=max_pixels,
                reduce=reduce,
                mask=mask,
                holes=holes,
            )
        finally:
            if process is not None and not process.works():
                with contextlib.suppress(ComputationError):  # it is tried again when it is needed
                    process = Process()
            self.free.put(process)

    def close(self) -> None:
        """Ends the processes that are at rest."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (process := self.free.get_nowait()) is not None:
                    process.kill()


class Process:
    """One process; it takes one picture at a time."""

    def __init__(self) -> None:
        command = code_command(CODE, *(place for place in sys.path if os.path.isabs(place)))
        command[0] = interpreter()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for its parent, with which it ends
            )
        except OSError as error:
            raise ComputationError(f"no process can be started to decode pictures: {error}") from None

    def works(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not sent
                pipe.close()  # type: ignore[union-attr]

    def decode(self, file: bytes, seconds: float, *, name: str, **limits: object) -> Decoded:
        """As `Decoders.decode`. Whatever goes wrong, the process is either at rest or dead afterwards."""
        request = {"name": name, "bytes": len(file), "seconds": seconds, **limits}
        watch = threading.Timer(WALL_FACTOR * seconds, self.process.kill)
        watch.start()
        try:
            answer, picture = self.exchange(json.dumps(request).encode() + b"\n", file)
        except (OSError, ValueError, EOFError):
            self.kill()
            if self.process.returncode in (-signal.SIGPROF, -signal.SIGKILL):
                raise KontextError(f"{name} takes more than {seconds:g} s to decode: save it again") from None
            raise KontextError(
                f"{name} cannot be read as a picture: its decoder died ({self.process.returncode})"
            ) from None
        except BaseException:
            self.kill()
            raise
        finally:
            watch.cancel()
        if picture is None:
            raise KontextError(str(answer["error"]))
        return Decoded(picture, tuple(answer["warnings"]))

    def exchange(self, request: bytes, file: bytes) -> tuple[dict[str, Any], Image.Image | None]:
        """The answer to a request, and the picture unless it is an error. Raises OSError, ValueError or EOFError if the
        process has died."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(request)
        stdin.write(file)
        stdin.flush()
        answer = json.loads(stdout.readline())
        if "error" in answer:
            return answer, None
        width, height = answer["size"]
        size = len(answer["mode"]) * width * height
        pixels = stdout.read(size)
        if len(pixels) < size:
            raise EOFError
        return answer, Image.frombytes(answer["mode"], (width, height), pixels)


def interpreter() -> str:
    """The Python that this process is: a program that embeds Python, as the server does, names itself or nothing."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if os.path.basename(sys.executable or "").startswith("python"):
        return sys.executable
    beside = os.path.join(sys.base_exec_prefix, "bin", version)
    return beside if os.access(beside, os.X_OK) else shutil.which(version) or version
