"""Whether the server edits: an edit of one step is tried until it works, and again after the engine has failed."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing

from PIL import Image

from ..runtime.server.jobs import png
from ..runtime.server_client import Edit
from .answers import Answers
from .faults import Fault

PAUSE_SECONDS = 5.0
"""Between two looks at the engine."""


class Readiness:
    """For one event loop.

    Args:
        answers: run the edit.
        patient: whether an edit that fails is tried again; else the first failure ends `run`.
    """

    def __init__(self, answers: Answers, patient: bool) -> None:
        self.answers = answers
        self.patient = patient
        self.fault = "no edit has worked yet"

    def problem(self) -> str:
        """Why an edit would not work now; "" if it would."""
        if self.answers.closing:
            return "the server shuts down"
        return self.fault or self.answers.engine.problem()

    async def run(self) -> None:
        """Keeps the answer true. Raises Fault if the first edit fails, unless `patient`."""
        while True:
            if self.fault or self.answers.engine.problem():
                await self.probe()
            await asyncio.sleep(PAUSE_SECONDS)

    async def probe(self) -> None:
        edit = Edit("try whether this works", [grey()], steps=1)
        try:
            async with aclosing(self.answers.events(edit, 1, max_wait=math.inf)) as events:
                async for _ in events:
                    pass
        except Fault as fault:
            if not self.patient:
                raise
            self.fault = fault.message
        else:
            self.fault = ""


def grey() -> bytes:
    """A small picture's file."""
    return png(Image.new("RGB", (64, 64), "grey"))
