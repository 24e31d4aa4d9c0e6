"""What is measured of each edit: names, columns, and how far a value is from that of a perfect result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


def rmse(decibels: float) -> float:
    """The root mean square error, in levels of 255, of a PSNR."""
    return 0.0 if decibels >= 100 else 255 * 10 ** (-decibels / 20)


@dataclass(frozen=True)
class Measure:
    """`label` is its column's header; `digits` are shown after the decimal point."""

    label: str
    digits: int
    error: Callable[[float], float] | None = None
    """Of a difference from the reference's run: its value as an error, which is 0 for equal pictures. None: the measure
    is of the result alone, and its error is how far the value is from the reference's."""
    is_verdict: bool = False
    """Of each edit it is yes or no."""

    def difference(self, value: float, reference: float) -> float:
        """The error of a value that is the reference's own for `reference`."""
        return abs(value - reference) if self.error is None else self.error(value)


LATENTS = {
    "latent_distance": Measure("latents' distance", 4, lambda value: value),
    "psnr": Measure("PSNR [dB]", 1, rmse),
    "kept_psnr": Measure("kept: PSNR [dB]", 1, rmse),
    "kept_ssim": Measure("kept: SSIM", 4, lambda value: 1 - value),
    "kept_delta_e": Measure("kept: ΔE2000", 2, lambda value: value),
}
"""Against the reference's result of the same edit and seed: final latents, whole picture, kept region."""

SOURCE = {
    "source_psnr": Measure("kept: PSNR [dB]", 1),
    "source_ssim": Measure("kept: SSIM", 4),
    "source_delta_e": Measure("kept: ΔE2000", 2),
}
"""Of the kept region against the source."""

EDIT = {
    "success": Measure("success", 2, is_verdict=True),
    "character_success": Measure("characters' success", 2, is_verdict=True),
    "clip": Measure("characters' CLIP", 4),
    "dino": Measure("characters' DINO", 4),
    "text_error": Measure("character error rate", 2),
    "text_read": Measure("text read right", 2, is_verdict=True),
}
"""Of what the edit was to do."""

MEASURES: Mapping[str, Measure] = {**LATENTS, **SOURCE, **EDIT}
EMBEDDINGS = ("clip", "dino")
