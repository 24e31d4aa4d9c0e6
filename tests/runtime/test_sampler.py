"""The schedule against diffusers', bit for bit, and Euler on a flow whose end is known."""

from __future__ import annotations

import numpy as np
import pytest

from kontext.runtime.sampler import euler, schedule, timesteps
from kontext.runtime.sampler_entry import SamplerEntry

SETTINGS = SamplerEntry(28, 2.5, 0.5, 1.15, 256, 4096, 16, ((1024, 1024),))


@pytest.mark.parametrize("steps", [1, 4, 28, 50])
@pytest.mark.parametrize("tokens", [64, 256, 2304, 4096, 4150])
def test_schedule_is_that_of_diffusers(steps: int, tokens: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_timesteps

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, max_shift=1.15
    )
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    times = schedule(steps, tokens, SETTINGS)
    assert times.dtype == np.float32
    assert np.array_equal(times, scheduler.sigmas.numpy())
    assert np.array_equal(timesteps(times[:-1]), (scheduler.timesteps / 1000).numpy())


def test_golden_schedule_of_four_steps() -> None:
    expected = [1.0, 0.90452, 0.75951, 0.51285, 0.0]  # e^1.15 t / (1 + (e^1.15 - 1) t)
    assert np.allclose(schedule(4, 4096, SETTINGS), expected, atol=1e-5)


def test_euler_integrates_a_straight_flow_exactly() -> None:
    noise, picture = np.ones((1, 2, 3), np.float32), np.full((1, 2, 3), 5, np.float32)
    result = euler(noise, schedule(7, 64, SETTINGS), lambda _step, _x: noise - picture)
    assert np.allclose(result, picture, atol=1e-5)


def test_euler_by_hand() -> None:
    """Steps of -0.5, -0.25 and -0.25 of v = step + x, all exact in binary; the network and the callback see each x."""
    times = np.array([1, 0.5, 0.25, 0], np.float32)
    given: list[tuple[int, float]] = []
    seen: list[tuple[int, float]] = []

    def velocity(step: int, latents: np.ndarray) -> np.ndarray:
        given.append((step, float(latents[0, 0, 0])))
        return step + latents

    start = np.full((1, 1, 1), 8, np.float32)
    result = euler(start, times, velocity, lambda step, x: seen.append((step, float(x[0, 0, 0]))))
    assert given == [(0, 8.0), (1, 4.0), (2, 2.75)]
    assert seen == [(1, 4.0), (2, 2.75), (3, 1.5625)]
    assert result.tolist() == [[[1.5625]]]
    assert start[0, 0, 0] == 8  # the noise is left alone
