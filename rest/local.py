"""The engine that edits in this process: a desk before one pipeline."""

from __future__ import annotations

from pathlib import Path

from ..runtime.pipeline import Pipeline
from ..runtime.server import jobs
from ..runtime.server.contract import Limits
from ..runtime.server.desk import Desk, default_batch
from ..runtime.server.measures import Counters
from ..runtime.server_client import Edit
from .calls import Caller


class Local:
    """A pipeline's edits, one thread at a time (`calls.Engine`).

    Raises ComputationError if no process can be started to decode pictures.
    """

    def __init__(
        self, pipe: Pipeline, limits: Limits, counters: Counters, lora_folder: Path | None = None
    ) -> None:
        self.model = pipe.bundle.name
        self.previews = pipe.bundle.preview is not None
        self.desk = Desk(pipe, limits, default_batch(pipe.bundle), counters, lora_folder)

    def submit(self, edit: Edit, callers: list[Caller]) -> None:
        arrays = edit.arrays()
        jobs.check_arrays(arrays)
        self.desk.submit(arrays, callers)

    def problem(self) -> str:
        stuck, most = self.desk.turns.stuck_seconds(), self.desk.limits.max_seconds
        if stuck > most:
            return "what runs the edits has died" if stuck == float("inf") else f"a step takes {stuck:.0f} s"
        return ""

    def close(self) -> None:
        self.desk.close()
