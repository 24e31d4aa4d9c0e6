"""The smallest fleet: it holds the goal, and one GPU fewer does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("simpy")

from kontext.bench.capacity import search
from kontext.bench.capacity.arrivals import Poisson
from kontext.bench.capacity.search import Goal, first_that, smallest_fleet
from kontext.bench.capacity.service import Service
from kontext.bench.capacity.simulation import Fleet, simulate
from kontext.errors import KontextError


@pytest.mark.parametrize("smallest", [1, 2, 7, 20, 100, 119])
@pytest.mark.parametrize("least", [0, 1, 6])
def test_the_first_that_holds(smallest: int, least: int) -> None:
    assert first_that(lambda gpus: gpus >= smallest, least, "it") == max(smallest, least, 1)


def test_none_holds() -> None:
    with pytest.raises(KontextError, match="no fleet of up to 140 GPUs holds it"):
        first_that(lambda gpus: False, 2, "it")


@pytest.mark.parametrize("probe", [100_000, 500])
def test_one_gpu_fewer_does_not_hold(monkeypatch: pytest.MonkeyPatch, probe: int) -> None:
    """Ten edits a second of a second each: fewer than ten GPUs never do, and some more are for the waiting."""
    monkeypatch.setattr(search, "PROBE", probe)
    service, goal = Service("x", (1.0,)), Goal(p95=1.2)
    fleet, outcome = smallest_fleet(Poisson(10.0), 400, service, Fleet(1), goal, seed=3)
    assert goal.holds(outcome)
    assert 11 <= fleet.gpus <= 16
    if probe > 10_000:
        times = Poisson(10.0).times(400, np.random.default_rng([3, 0]))
        assert not goal.holds(simulate(times, service, replace(fleet, gpus=fleet.gpus - 1), seed=3))


def test_goals_that_no_fleet_holds() -> None:
    with pytest.raises(KontextError, match="an edit alone on a GPU takes 2 s"):
        smallest_fleet(Poisson(1.0), 100, Service("x", (2.0,)), Fleet(1), Goal(1.5), seed=0)
    with pytest.raises(KontextError, match="no edit arrives"):
        smallest_fleet(Poisson(1e-9), 1, Service("x", (2.0,)), Fleet(1), Goal(3), seed=0)
