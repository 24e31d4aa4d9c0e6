"""The compiler's process, from this side: jobs in, progress and results out; stopped at once when this side stops."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ...errors import KontextError

Phase = Callable[[str, int, int], object]
"""Told (name of the innermost phase, steps of the outermost done, of how many)."""


class BuilderProcess:
    """Builds engines one after the other in one process, started with the first.

    Leaving the context, by Ctrl-C too, kills it; what it was writing is removed.
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
        """Ends the process from another thread; whoever waits for an engine is told that there is none."""
        process = self.process
        if process is not None:
            process.kill()

    def start(self) -> subprocess.Popen[str]:
        # In a session of its own: Ctrl-C comes to this process, which decides what becomes of the other.
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.compiler", self.library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def build(self, job: dict[str, Any], phase: Phase) -> dict[str, Any]:
        """Builds one engine; returns what the process says of it.

        Raises:
            KontextError: the library refuses the graph, or the process died of it.
        """
        if self.process is None:
            self.process = self.start()
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the compiler's process has no pipes")
        what = f"{Path(job['graph']).stem} for {job['target']}"
        try:
            with contextlib.suppress(BrokenPipeError):  # it died: what it says comes below
                stdin.write(json.dumps(job) + "\n")
                stdin.flush()
            for line in stdout:
                message = json.loads(line)
                if "built" in message:
                    result: dict[str, Any] = message["built"]
                    return result
                if "fault" in message:
                    raise KontextError(f"the engine of {what} cannot be built: {message['fault']}")
                phase(message["phase"], message["step"], message["of"])
        except BaseException:
            self.stop()
            Path(job["output"] + ".tmp").unlink(missing_ok=True)
            raise
        code = self.process.wait()
        self.process = None
        raise KontextError(
            f"the engine of {what} cannot be built: the compiler ended with {code}{self.last_words()}"
        )

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""
