"""Requests at a desk: pictures of one request, a full queue, faults before and after decoding."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.embedding_cache import EmbeddingCache
from kontext.runtime.server.contract import Limits
from kontext.runtime.server.desk import Desk
from kontext.runtime.server.outcomes import Full
from kontext.runtime.server_client import Edit


class Caller:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.warnings: list[str] = []
        self.on_preview = None
        self.result: Any = None
        self.ended = threading.Event()

    def cancelled(self) -> bool:
        return False

    def begin(self) -> None: ...

    def progress(self, step: int, total: int) -> None: ...

    def finish(self, picture: Image.Image) -> None:
        self.result = picture
        self.ended.set()

    def fail(self, error: BaseException | None) -> None:
        self.result = error
        self.ended.set()

    def wait(self) -> Any:
        assert self.ended.wait(60)
        return self.result


class Counts:
    def __init__(self) -> None:
        self.waiting = 0

    def edit(self, outcome: str, seconds: float) -> None: ...

    def queued(self, change: int, seconds: float | None = None) -> None:
        self.waiting += change

    def steps(self, rows: int) -> None: ...

    def batch(self, rows: int) -> None: ...

    def cache(self, embeddings: EmbeddingCache) -> None: ...


@pytest.fixture(scope="module")
def desk(local: Pipeline) -> Iterator[Desk]:
    desk = Desk(local, replace(Limits(), max_queue=2), 4, Counts())
    yield desk
    desk.close()


EDIT = Edit("make it red", (), steps=1, seed=7, size=(64, 64))


def test_each_listener_gets_a_picture_with_the_next_seed(desk: Desk, local: Pipeline) -> None:
    callers = [Caller(), Caller()]
    desk.submit(EDIT.arrays(), callers)
    made = [caller.wait() for caller in callers]
    alone = [local.edit(None, EDIT.prompt, steps=1, seed=seed, size=(64, 64)) for seed in (7, 8)]
    assert all(np.array_equal(one, other) for one, other in zip(made, alone, strict=True))
    assert desk.counters.waiting == 0  # type: ignore[attr-defined]


def test_faults_reach_every_listener(desk: Desk) -> None:
    for edit, words in (
        (replace(EDIT, images=[b"\x89PNG"]), r"IMAGES\[0\]"),
        (replace(EDIT, size=(60, 64)), "multiples"),
        (replace(EDIT, seed=2**64 - 1), "a seed is"),
    ):
        callers = [Caller(), Caller()]
        desk.submit(edit.arrays(), callers)
        for caller in callers:
            with pytest.raises(KontextError, match=words):
                raise caller.wait()
    assert desk.counters.waiting == 0  # type: ignore[attr-defined]


def test_a_full_desk_refuses(desk: Desk) -> None:
    desk.turns.expect()
    desk.turns.expect()
    with pytest.raises(Full, match="maximum queue size of 2"):
        desk.submit(EDIT.arrays(), [Caller()])
    for _ in range(2):
        desk.turns.between_steps(lambda: None)
