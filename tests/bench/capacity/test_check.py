"""The check of the simulation: what it records, with a client that answers from memory. How far apart both are is a
measurement, in docs/capacity.md."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

pytest.importorskip("simpy")
pytest.importorskip("torch")

from PIL import Image

from kontext.bench.capacity import check
from kontext.bench.capacity.benchmark import footer, tables
from kontext.errors import KontextError
from kontext.runtime.server_client import Answer, Edit


class SlowClient:
    """One edit at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def edit(self, edit: Edit, progress: Any = None) -> Answer:
        with self.lock:
            time.sleep(0.002)
        return Answer(Image.new("RGB", (16, 16)), ())

    def close(self) -> None: ...


def test_a_check() -> None:
    result = check.check_server(SlowClient(), Edit("x", steps=4), 2, seconds=0.3, seed=0)
    assert [level["concurrency"] for level in result["levels"]] == [1, 2, 4]
    assert [(row["arrivals"]["kind"], row["load"]) for row in result["loads"]] == list(check.LOADS)
    for row in result["loads"]:
        assert set(row["apart"]) == {"p50", "p95", "per_second"}
        assert row["apart"]["p50"] == round(row["simulated"]["p50"] / row["measured"]["p50"] - 1, 4)
        assert 0 < row["measured"]["p50"] <= row["measured"]["p95"]
    (table,) = tables(result)
    assert table.rows[0][0] == "poisson, 50% of capacity"
    assert "batches of up to 2" in footer(result)


def test_loads_that_are_too_short() -> None:
    with pytest.raises(KontextError, match="give more --seconds-of-load"):
        check.check_server(SlowClient(), Edit("x", steps=4), 1, seconds=0.001, seed=0)
