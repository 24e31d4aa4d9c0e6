"""Whether the reference's runs fit into memory: every edit's velocities and latents are kept until the last bundle has
been compared with them."""

from __future__ import annotations

import psutil

from ...errors import KontextError
from ...runtime.bundle import Bundle
from ...runtime.units import gigabytes


def bytes_per_edit(bundle: Bundle, steps: int) -> int:
    """Of the velocity and the latents after each step, fp32 [tokens, channels], at the largest of the preferred
    sizes."""
    latent = bundle.autoencoder
    pixels = max(width * height for width, height in bundle.sampler.preferred_sizes)
    return 2 * 4 * steps * latent.latent_channels * pixels // latent.downscale**2


def check_memory(bundle: Bundle, edits: int, steps: int) -> None:
    """Raises KontextError if the runs of the reference would not fit into the memory that is available now."""
    each, available = bytes_per_edit(bundle, steps), psutil.virtual_memory().available
    if edits * each > available:
        raise KontextError(
            f"{edits} edits of {steps} steps need {gigabytes(edits * each)} of memory for the reference's velocities "
            f"and latents, and {gigabytes(available)} are available: take up to {available // each} edits (-n)"
        )
