"""Runs the compiler's process: sends jobs, receives progress and results, and kills it when this process stops."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ...child_process import module_command
from ...errors import KontextError
from ...files import remove_temporaries

OnPhase = Callable[[str, int, int], object]
"""Called with (name of the innermost phase, finished steps of the outermost, its number of steps)."""


class BuilderProcess:
    """Builds engines one after the other in one process, which starts with the first job.

    Leaving the context kills the process and removes its unfinished file, after Ctrl-C too.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self.process: subprocess.Popen[str] | None = None
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process

    def __enter__(self) -> BuilderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.errors.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def kill(self) -> None:
        """Ends the process from another thread; a waiting `build` raises KontextError."""
        process = self.process
        if process is not None:
            process.kill()

    def start(self) -> subprocess.Popen[str]:
        # A new session, so that Ctrl-C reaches only this process, which then kills the other.
        return subprocess.Popen(
            module_command(f"{__package__}.compiler", self.library),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def build(self, job: dict[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Builds the engine of a `compiler.build_engine` job; returns its size, seconds, peak_bytes and so on.

        Raises:
            KontextError: the library refuses the graph, or the process died.
        """
        if self.process is None:
            self.process = self.start()
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the compiler's process has no pipes")
        what = f"{Path(job['graph']).stem} for {job['target']}"
        try:
            with contextlib.suppress(BrokenPipeError):  # it died: its last words are reported below
                stdin.write(json.dumps(job) + "\n")
                stdin.flush()
            for line in stdout:
                message = json.loads(line)
                if "built" in message:
                    result: dict[str, Any] = message["built"]
                    return result
                if "fault" in message:
                    raise KontextError(f"the engine of {what} cannot be built: {message['fault']}")
                on_phase(message["phase"], message["step"], message["of"])
        except BaseException:
            self.stop()
            remove_temporaries(Path(job["output"]).parent)
            raise
        code = self.process.wait()
        self.process = None
        remove_temporaries(Path(job["output"]).parent)
        raise KontextError(
            f"the engine of {what} cannot be built: the compiler ended with {code}{self.last_words()}"
        )

    def last_words(self) -> str:
        """The last line that the process wrote to stderr, after a colon."""
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""
