"""Every kind of sigmas of diffusers' flow scheduler, bit for bit, and damaged settings."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from kontext.errors import KontextError
from kontext.runtime.fields import Fields
from kontext.runtime.sampler import schedule
from kontext.runtime.sampler_entry import SPACINGS, TIME_SHIFTS, SamplerEntry, SigmasEntry, read_sigmas
from kontext.runtime.sigmas import beta_quantile

KINDS = [
    SigmasEntry(time_shift, 2.5, spacing, terminal)
    for time_shift, spacing, terminal in itertools.product(TIME_SHIFTS, SPACINGS, (None, 0.1))
]


def sampler(sigmas: SigmasEntry) -> SamplerEntry:
    return SamplerEntry(28, 2.5, 0.5, 1.15, 256, 4096, 16, ((1024, 1024),), sigmas=sigmas)


@pytest.mark.parametrize("sigmas", KINDS, ids=str)
def test_the_schedule_is_that_of_diffusers(sigmas: SigmasEntry) -> None:
    """As FluxKontextPipeline calls the scheduler: set_timesteps(sigmas=…, mu=…)."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_timesteps

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=sigmas.shift,
        use_dynamic_shifting=sigmas.time_shift != "constant",
        time_shift_type="linear" if sigmas.time_shift == "linear" else "exponential",
        shift_terminal=sigmas.terminal,
        **({} if sigmas.spacing == "uniform" else {f"use_{sigmas.spacing}_sigmas": True}),
    )
    for steps, tokens in itertools.product((1, 2, 4, 28, 50), (64, 2304, 4150)):
        if steps == 1 and sigmas.terminal:
            continue  # diffusers divides 0 by 0
        mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
        retrieve_timesteps(scheduler, steps, "cpu", sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
        assert np.array_equal(schedule(steps, tokens, sampler(sigmas)), scheduler.sigmas.numpy())


def test_one_step_with_a_terminal_sigma() -> None:
    assert schedule(1, 64, sampler(SigmasEntry(terminal=0.1))).tolist() == [1, 0]


def test_golden_quantiles() -> None:
    """The beta distribution's with both parameters 0.6 (scipy.stats.beta.ppf)."""
    golden = {
        0: 0,
        0.01: 0.000861238822,
        0.1: 0.039584405589,
        0.3: 0.234017003875,
        0.5: 0.5,
        0.9: 0.960415594411,
    }
    for p, x in golden.items():
        assert beta_quantile(p) == pytest.approx(x, abs=1e-11)
    assert beta_quantile(1) == 1


def test_a_linear_shift_below_zero() -> None:
    settings = SamplerEntry(28, 2.5, 0.1, 4.0, 256, 4096, 16, ((1024, 1024),), sigmas=SigmasEntry("linear"))
    assert len(schedule(4, 256, settings)) == 5
    with pytest.raises(KontextError, match=r"the time shift for this size is -0\.0"):
        schedule(4, 64, settings)


SOUND = {"time_shift": "linear", "shift": 1.0, "spacing": "beta", "terminal": 0.1}


def test_settings_are_read() -> None:
    assert read_sigmas(Fields({"sigmas": SOUND}, "sampler.")) == SigmasEntry("linear", 1.0, "beta", 0.1)
    assert read_sigmas(Fields({}, "sampler.")) == SigmasEntry()
    assert read_sigmas(Fields({"sigmas": SOUND | {"terminal": None}}, "")).terminal is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_shift": "cosine"}, "sampler.sigmas.time_shift must be one of exponential, linear, constant"),
        ({"spacing": 3}, "sampler.sigmas.spacing must be a non-empty string"),
        ({"shift": 0}, "sampler.sigmas.shift must be above 0"),
        ({"terminal": 1}, "sampler.sigmas.terminal must be between 0 and 1"),
        ({"terminal": "low"}, "sampler.sigmas.terminal must be a number from 0 to 1, not 'low'"),
    ],
)
def test_damaged_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(KontextError, match=re.escape(message)):
        read_sigmas(Fields({"sigmas": SOUND | change}, "sampler."))
