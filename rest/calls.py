"""One request between two worlds: the coroutine that answers it, and the threads that edit.

A `Call` has a `Caller` for each picture; threads call its methods, and what they say becomes events of the coroutine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from PIL import Image

from ..runtime.server.measures import Counters
from ..runtime.server_client import Edit
from .faults import Fault, Unavailable, fault_of, outcome_of


class Engine(Protocol):
    """What runs edits. Threads may call it."""

    model: str
    """The model's id for callers."""
    previews: bool
    """Whether it is known to make previews."""

    def submit(self, edit: Edit, callers: list[Caller]) -> None:
        """Takes an edit in: a picture for each caller, the seeds counted up from the edit's.

        Raises KontextError if it cannot be taken.
        """

    def problem(self) -> str:
        """Why it would not edit now; "" if it would."""

    def close(self) -> None:
        """Returns when all edits have ended."""


@dataclass(frozen=True)
class Begun:
    """An edit no longer waits."""


@dataclass(frozen=True)
class Step:
    number: int
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """What a picture would become; before the step that it belongs to."""

    number: int
    picture: Image.Image


@dataclass(frozen=True)
class Done:
    number: int
    picture: Image.Image
    warnings: tuple[str, ...]


Event: TypeAlias = "Begun | Step | Preview | Done | Fault"


class Caller:
    """The listener of one picture's edit (`desk.Listener`)."""

    def __init__(self, call: Call, number: int, counters: Counters, previews: bool) -> None:
        self.call = call
        self.number = number
        self.counters = counters
        self.started = time.monotonic()
        self.warnings: list[str] = []
        self.on_preview: Callable[[Image.Image], object] | None = self.preview if previews else None
        self.on_cancel: Callable[[], object] = lambda: None
        """Called from the coroutine when the edit is to stop."""

    def cancelled(self) -> bool:
        return self.call.cancelled.is_set()

    def begin(self) -> None:
        self.call.say(Begun())

    def progress(self, step: int, total: int) -> None:
        self.call.say(Step(self.number, step, total))

    def preview(self, picture: Image.Image) -> None:
        self.call.say(Preview(self.number, picture))

    def finish(self, picture: Image.Image) -> None:
        self.count("ok")
        self.call.say(Done(self.number, picture, tuple(self.warnings)))

    def fail(self, error: BaseException | None) -> None:
        if error is None and self.call.closing:
            error = Unavailable("the server shuts down")
        self.count(outcome_of(error))
        self.call.say(fault_of(error))

    def count(self, outcome: str) -> None:
        self.counters.edit(outcome, self.waited())

    def waited(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.started


class Call:
    """The events of one request; made inside its coroutine."""

    def __init__(self, pictures: int, counters: Counters, previews: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.closing = False
        """Whether the server cancels it, and not its caller."""
        self.callers = [Caller(self, number, counters, previews) for number in range(pictures)]

    def say(self, event: Event) -> None:
        """From any thread. A loop that is closed has nobody who listens."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self) -> None:
        """Stops the edits at their next step."""
        self.cancelled.set()
        for each in self.callers:
            each.on_cancel()
