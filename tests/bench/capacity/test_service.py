"""Times of a GPU from results: closed loops that a small model of the server makes give back its times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.bench.capacity.service import of_levels, read_service
from kontext.errors import KontextError


def closed_loop(callers: int, most: int, base: float, each: float, around: float) -> dict[str, Any]:
    """A level of a server that begins a batch with whoever waits, as `runtime/server/turns.py` does: batches of n take
    base + n · each, and callers come back after `around`. By hand, without SimPy."""
    ready = [0.04 * caller for caller in range(callers)]  # they begin one after the other
    now, samples, sent = 0.0, [], [at - around for at in ready]
    while len(samples) < 4000:
        waiting = sorted((at, caller) for caller, at in enumerate(ready) if at <= now + 1e-12)
        if not waiting:
            now = min(ready)
            continue
        batch = [caller for _, caller in waiting[:most]]
        now += base + each * len(batch)
        for caller in batch:
            samples.append(now - sent[caller])
            sent[caller], ready[caller] = now, now + around
    return {"concurrency": callers, "per_second": len(samples) / now, "samples": samples}


@pytest.mark.parametrize("around", [0.002, 0.01, 0.03])
def test_levels_give_back_the_times(around: float) -> None:
    levels = [closed_loop(callers, 8, 0.02, 0.055, around) for callers in (1, 2, 4, 8, 16)]
    service = of_levels("x", levels, 8)
    assert service.batch == 8
    for number in (1, 2, 4, 8):
        assert service.seconds[number - 1] == pytest.approx(0.02 + 0.055 * number, rel=0.08)
    assert service.overhead == pytest.approx(around, abs=0.002)
    assert service.rate == pytest.approx(8 / 0.46, rel=0.02)


def test_levels_that_are_missing() -> None:
    levels = [closed_loop(callers, 8, 0.02, 0.055, 0.01) for callers in (1, 2, 4, 8)]
    with pytest.raises(KontextError, match="x lacks a number of callers: 1, 2 and 16 are needed"):
        of_levels("x", levels, 8)
    assert of_levels("x", levels[:2], 1).batch == 1


def write(path: Path, result: dict[str, Any]) -> Path:
    path.write_text(json.dumps(result))
    return path


def test_of_latency_and_batch(tmp_path: Path) -> None:
    latency = {"what": "latency", "sides": {"kontext": {"edit": {"samples": [1.0, 3.0]}}}}
    service = read_service(write(tmp_path / "latency.json", latency), None)
    assert (service.seconds, service.spread) == ((2.0,), (0.5, 1.5))
    side = {"edits_per_second": {"samples": [2.0, 2.0]}}
    batch = {"what": "batch", "batch_size": 4, "sides": {"kontext-batch": side}}
    assert read_service(write(tmp_path / "batch.json", batch), None).seconds == (0.5, 1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("result", "batch", "message"),
    [
        ({"what": "fidelity"}, None, "is a result of 'fidelity': give one of latency, serving or batch"),
        ({"what": "latency", "sides": {}}, None, "it has no kontext"),
        (
            {"what": "serving", "levels": []},
            None,
            "it has no batch",
        ),
        ({"what": "latency", "sides": {"kontext": {"edit": {"median": 1}}}}, None, "has no values of runs"),
        ({"what": "latency"}, 4, "measured edits one at a time: --batch needs a result of serving"),
        ({"what": "batch", "batch_size": 4}, 2, "measured batches of 4, not of 2"),
        ({"what": "serving", "batch": None, "levels": []}, None, "add --batch"),
    ],
)
def test_what_is_no_source(tmp_path: Path, result: dict[str, Any], batch: int | None, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        read_service(write(tmp_path / "result.json", result), batch)
