"""A server's parts put together: an engine, what answers with it, and what stands before the application."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

from ..runtime.server.contract import Limits
from .answers import Answers
from .app import make_app
from .calls import Engine
from .guard import Bodies, Guard
from .held import Held
from .keys import Keys
from .masks import Masks
from .metrics import Metrics
from .readiness import Readiness

BODY_BYTES = 64 << 20
"""Of one request: eight pictures of 8 MB."""
BODIES_BYTES = 1 << 30
"""Of all requests that are not answered."""


@dataclass(frozen=True)
class Service:
    engine: Engine
    answers: Answers
    readiness: Readiness
    masks: Masks
    app: FastAPI
    guard: Guard
    """The ASGI application that listens: `app` behind what every request passes."""

    def close(self) -> None:
        """Returns when all edits have ended."""
        self.engine.close()
        self.masks.close()


def make_service(
    engine: Engine,
    metrics: Metrics,
    limits: Limits,
    *,
    max_wait: float,
    keys: Keys | None = None,
    hosts: frozenset[str] | None = None,
    patient: bool = False,
) -> Service:
    """A service of an engine.

    Args:
        engine: runs the edits.
        metrics: those that the engine counts in.
        limits: of one request.
        max_wait: seconds that an edit may wait for its begin.
        keys, hosts: as `Guard` takes them.
        patient: as `Readiness` takes it.
    """
    answers = Answers(engine, metrics, Held(), max_wait)
    masks = Masks(limits)
    readiness = Readiness(answers, patient)
    app = make_app(answers, readiness, masks, limits, metrics.text, keys=keys is not None)
    guard = Guard(app, keys=keys, hosts=hosts, bodies=Bodies(BODY_BYTES, BODIES_BYTES), metrics=metrics)
    return Service(engine, answers, readiness, masks, app, guard)
