"""The engine that has NVIDIA Triton Inference Server edit, through `server_client`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..errors import KontextError
from ..runtime import server_client
from ..runtime.noise import check_seed
from ..runtime.server import contract
from ..runtime.server.measures import Counters
from ..runtime.server.outcomes import Full
from ..runtime.server_client import Edit
from .calls import Caller
from .faults import Unavailable

AT_ONCE = 64
"""Edits that the server upstream has at a time; it batches them, and further ones wait here."""


class Upstream:
    """A server's edits, each in a thread that waits (`calls.Engine`).

    Raises KontextError if `url` is no server's URL, or a library for it is missing.
    """

    model = contract.UNARY
    previews = False
    """The server makes them if its bundle has their colours, which it does not tell."""

    def __init__(self, url: str, limits: contract.Limits, counters: Counters) -> None:
        server_client.connect(url).close()
        self.url = url
        self.limits = limits
        self.counters = counters
        self.pool = ThreadPoolExecutor(AT_ONCE)
        self.lock = threading.Lock()
        self.taken = 0
        self.fault = ""
        """Why the last edit could not be taken upstream."""

    def submit(self, edit: Edit, callers: list[Caller]) -> None:
        edit.values()
        check_seed(edit.seed + len(callers) - 1)
        if len(edit.images) > self.limits.max_references:
            raise KontextError(
                f"IMAGES has {len(edit.images)} pictures; at most {self.limits.max_references} are taken here"
            )
        with self.lock:
            if self.taken >= self.limits.max_queue + AT_ONCE:
                raise Full(f"the maximum queue size of {self.limits.max_queue} is reached: try again later")
            self.taken += len(callers)
        for number, caller in enumerate(callers):
            self.counters.queued(1)
            self.pool.submit(
                self.run, replace(edit, seed=edit.seed + number, on_preview=caller.on_preview), caller
            )

    def run(self, edit: Edit, caller: Caller) -> None:
        """Answers one caller; in a thread of the pool."""
        try:
            self.counters.queued(-1, caller.waited())
            client = server_client.connect(self.url)
            caller.on_cancel = client.close
            if caller.cancelled():
                caller.fail(None)
                return
            caller.begin()
            try:
                answer = client.edit(edit, self.counting(caller))
            except Exception as error:
                lost = isinstance(error, server_client.Unavailable | server_client.Unreachable)
                if caller.cancelled():
                    caller.fail(None)
                    return
                if lost:
                    self.fault = str(error)
                caller.fail(Unavailable(f"upstream: {error}") if lost else error)
            else:
                self.fault = ""
                caller.warnings = list(answer.warnings)
                caller.finish(answer.picture)
        finally:
            with self.lock:
                self.taken -= 1

    def counting(self, caller: Caller) -> server_client.Progress:
        def progress(step: int, total: int) -> None:
            self.counters.steps(1)
            caller.progress(step, total)

        return progress

    def problem(self) -> str:
        return self.fault

    def close(self) -> None:
        self.pool.shutdown()
