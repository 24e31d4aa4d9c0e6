"""The rectified-flow sampler: the schedule of times and Euler's method. numpy, fp32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .sampler_entry import SamplerEntry
from .sigmas import to_sigmas

Array = NDArray[np.float32]


def schedule(steps: int, target_tokens: int, settings: SamplerEntry) -> Array:
    """Times [steps + 1] from 1 (noise) to 0 (picture).

    Equal steps of t, shifted towards the noise: t' = e^mu / (e^mu + 1/t - 1), where mu is linear in the number of
    target tokens through the settings' two anchors (Esser et al. 2024); `settings.sigmas` may change that. In fp32
    throughout, which gives the same bits as diffusers' scheduler.
    """
    slope = (settings.max_shift - settings.base_shift) / (settings.max_tokens - settings.base_tokens)
    mu = target_tokens * slope + (settings.base_shift - slope * settings.base_tokens)
    t = np.linspace(1, 1 / steps, steps).astype(np.float32)
    return np.append(to_sigmas(t, mu, settings.sigmas), np.float32(0))


def timesteps(times: Array) -> Array:
    """The network's `timestep` inputs: diffusers multiplies times by 1000 and divides again, in fp32."""
    return times * np.float32(1000) / np.float32(1000)


def euler(
    latents: Array,
    times: Array,
    velocity: Callable[[int, Array], Array],
    callback: Callable[[int, Array], object] | None = None,
    keep: Callable[[np.float32, Array], Array] | None = None,
) -> Array:
    """Integrates from `times[0]` to `times[-1]`: x += (t_next - t) * v.

    Args:
        latents: at the first time, [batch, tokens, channels].
        times: [steps + 1], falling.
        velocity: (step, latents) → velocity of the same shape.
        keep: (time, latents) → latents, after each step.
        callback: called with (steps done, latents) after each step; an exception in it stops the edit.
    """
    for step in range(len(times) - 1):
        latents = latents + (times[step + 1] - times[step]) * velocity(step, latents)
        if keep is not None:
            latents = keep(times[step + 1], latents)
        if callback is not None:
            callback(step + 1, latents)
    return latents


def destination(
    latents: Array,
    time: np.float32,
    velocity: Array,
    keep: Callable[[np.float32, Array], Array] | None = None,
) -> Array:
    """Where a step leads to: latents at time 0 if the velocity stayed as it is, x - t * v. `keep` as for `euler`."""
    found = latents - time * velocity
    return found if keep is None else keep(np.float32(0), found)
