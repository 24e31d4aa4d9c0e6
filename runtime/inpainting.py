"""Repainting a picture: only where a mask is white, or all of it from a noised copy on (image to image).

Sampling begins at a later time (`strength`) from the picture's latents with noise. After every step, what the mask
keeps is replaced by the picture's latents with the noise of the time that was reached; at the last step, without any.
The same arithmetic as diffusers' FluxKontextInpaintPipeline, in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import KontextError
from .images import Size, preferred_size
from .masks import blurred, check_blur, fitted, of_latents, to_grey
from .number_checks import checked_share
from .references import SAME_ASPECT, agrees, shown
from .rgb import upright_rgb
from .sampler_entry import SamplerEntry
from .sizes import distortion
from .tokens import pack

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RepaintOptions:
    """The arguments of `Pipeline.edit` that repaint a picture."""

    mask: Image.Image | None = None
    mask_blur: int = 0
    strength: float = 1.0
    init_image: Image.Image | None = None
    paste_back: bool = False

    @property
    def repaints(self) -> bool:
        """Whether a picture is repainted at all."""
        return self.mask is not None or self.strength < 1

    def check(self) -> None:
        """Raises KontextError for a value out of its range, or without the one that it needs."""
        checked_share(self.strength, "strength")
        check_blur(self.mask_blur)
        if not isinstance(self.paste_back, bool):
            raise KontextError(f"paste_back must be True or False, not {self.paste_back!r}")
        for name, given in (("mask_blur", self.mask_blur), ("paste_back", self.paste_back)):
            if given and self.mask is None:
                raise KontextError(f"{name} needs a mask")
        if self.init_image is not None and not self.repaints:
            raise KontextError("init_image needs a mask, or a strength below 1: else nothing of it is used")


@dataclass(frozen=True)
class Repaint:
    """What one picture repaints."""

    picture: Image.Image
    """Upright and in RGB, encoded at `size`."""
    size: Size
    """The output's."""
    mask: Image.Image | None
    """8-bit grey at `size`, blurred; None: all of it is repainted."""
    paste_back: bool
    options: RepaintOptions
    """What it was made from, its pictures upright and converted."""

    def pasted(self, result: Image.Image) -> Image.Image:
        """The result of the edit, or with `paste_back` the picture's own pixels where the mask is black, and a
        mixture where it is grey."""
        if not self.paste_back or self.mask is None:
            return result
        picture = self.picture
        if picture.size != self.size:
            picture = picture.resize(self.size, Image.Resampling.LANCZOS)
        return Image.composite(result, picture, self.mask)


class Repaints:
    """Makes each row's `Repaint`: the mask and `init_image` are converted once, and a mask fitted once for a size.

    Raises KontextError for wrong options.
    """

    def __init__(self, options: RepaintOptions, settings: SamplerEntry) -> None:
        options.check()
        # numpy's numbers are taken too, but not by Pillow or JSON.
        options = replace(options, mask_blur=int(options.mask_blur), strength=float(options.strength))
        self.options, self.settings = options, settings
        grey = None if options.mask is None else to_grey(options.mask)
        self.mask = None if grey is None else blurred(grey, options.mask_blur)
        self.init = None if options.init_image is None else upright_rgb(options.init_image)
        self.converted = replace(options, mask=grey, init_image=self.init)
        self.fitted: dict[Size, Image.Image] = {}

    def __call__(self, pictures: Sequence[Image.Image], output: Size) -> tuple[Repaint | None, list[str]]:
        """What is repainted with these references, upright and in RGB, at this output's size, if anything is; and what
        the user should be warned of.

        Raises KontextError if there is no picture to repaint.
        """
        if not self.options.repaints:
            return None, []
        if self.init is None and not pictures:
            what = "a strength below 1" if self.mask is None else "a mask"
            raise KontextError(f"{what} needs a picture to repaint: give image, or init_image")
        picture = pictures[0] if self.init is None else self.init
        notes = []
        if not agrees(picture.size, output, preferred_size(picture.size, self.settings.preferred_sizes)):
            notes.append(
                f"the picture to repaint has {shown(picture.size)}, another aspect than the output of {shown(output)}: "
                "it is stretched"
            )
        if self.mask is None:
            return Repaint(picture, output, None, False, self.converted), notes
        if distortion(self.mask.size, picture.size) > SAME_ASPECT:
            notes.append(
                f"the mask of {shown(self.mask.size)} has another aspect than the picture of {shown(picture.size)}: it "
                "is stretched over all of it"
            )
        if output not in self.fitted:
            self.fitted[output] = fitted(self.mask, output)
        return Repaint(picture, output, self.fitted[output], self.options.paste_back, self.converted), notes


def skipped_steps(steps: int, strength: float) -> int:
    """How many of the first steps `strength` leaves out; rounded as diffusers does it, so that one step remains.

    Raises KontextError for a strength that is so near to 0 that none does.
    """
    skipped = math.floor(steps - min(steps * strength, steps))
    if skipped >= steps:
        raise KontextError(f"strength {strength:g} leaves none of {steps} steps")
    return skipped


class Repainting:
    """The latents of a batch of pictures that are repainted, as tokens [rows, tokens, channels].

    Args:
        repaints: of each row; rows of one size.
        originals: the latents of each row's picture, [1, tokens, channels].
        noise: of each row, [rows, tokens, channels].
        downscale: a latent's side in pixels.
    """

    def __init__(
        self, repaints: Sequence[Repaint], originals: Sequence[Array], noise: Array, downscale: int
    ) -> None:
        self.original, self.noise = np.concatenate(originals), noise
        self.mask = np.concatenate([token_mask(each, noise.shape[2] // 4, downscale) for each in repaints])

    def noised(self, time: np.float32) -> Array:
        """The pictures' latents as they are at a time: 1 is noise, 0 the picture."""
        return time * self.noise + (np.float32(1) - time) * self.original

    def keep(self, time: np.float32, latents: Array) -> Array:
        """`latents` of a time, where the mask is white, and the pictures' own where it is black."""
        return (np.float32(1) - self.mask) * self.noised(time) + self.mask * latents


def token_mask(repaint: Repaint, channels: int, downscale: int) -> Array:
    """1 where a picture is repainted, else 0: fp32 [1, tokens, 4 * channels]."""
    w, h = (side // downscale for side in repaint.size)
    chosen = np.ones((h, w), bool) if repaint.mask is None else of_latents(repaint.mask, downscale)
    return pack(np.broadcast_to(chosen.astype(np.float32), (1, channels, h, w)))
