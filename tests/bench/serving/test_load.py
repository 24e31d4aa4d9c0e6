"""The closed loop, with a client that answers from memory."""

from __future__ import annotations

import io
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from kontext.bench.serving.load import measure_load
from kontext.errors import KontextError
from kontext.runtime.server_client import Answer, Edit


class CountingClient:
    """Takes a moment per edit, and counts concurrent callers."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.seeds: list[int] = []
        self.inside = self.most = 0
        self.breaks_at = breaks_at
        self.lock = threading.Lock()

    def edit(self, edit: Edit, progress: Any = None) -> Answer:
        with self.lock:
            self.seeds.append(edit.seed)
            self.inside += 1
            self.most = max(self.most, self.inside)
            if len(self.seeds) == self.breaks_at:
                raise KontextError("no more")
        time.sleep(0.002)
        with self.lock:
            self.inside -= 1
        return Answer(Image.new("RGB", (16, 16)), ())

    def close(self) -> None: ...


def test_every_edit_is_sent_once_by_no_more_callers_than_requested() -> None:
    client = CountingClient()
    result = measure_load(client, Edit("x", steps=4, size=(64, 64)), [1, 3], requests=7)
    assert sorted(client.seeds) == list(range(15))
    assert client.most <= 3
    for level, callers in zip(result["levels"], (1, 3), strict=True):
        assert (level["concurrency"], level["requests"]) == (callers, 7)
        assert 0 < level["p50"] <= level["p95"] <= level["p99"]
        assert level["per_second"] > 0


def test_no_two_edits_share_a_prompt_or_a_picture_unless_asked() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "grey").save(file, "PNG")
    for same in (False, True):
        sent: list[Edit] = []
        client = SimpleNamespace(edit=sent.append)
        measure_load(client, Edit("x", [file.getvalue()]), [2], requests=5, same=same)  # type: ignore[arg-type]
        for values in ([edit.prompt for edit in sent], [edit.images[0] for edit in sent]):
            assert len(set(values)) == (1 if same else 6)
        assert sorted(edit.seed for edit in sent) == list(range(6))


def test_each_caller_has_something_to_do() -> None:
    client = CountingClient()
    result = measure_load(client, Edit("x"), [4], requests=1, warmup=0)
    assert result["levels"][0]["requests"] == 4


def test_a_loss_is_an_error() -> None:
    with pytest.raises(KontextError, match="no more"):
        measure_load(CountingClient(breaks_at=5), Edit("x"), [2], requests=20)
