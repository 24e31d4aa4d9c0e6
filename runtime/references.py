"""Reference pictures: the size that each is encoded at, and where its tokens stand among all positions.

Three methods place several references; a single one stands at the same place with all of them.

index: the k-th reference has image index k and begins at row and column 0, as in Black Forest Labs' paper.
offset: all have image index 1 and stand as if on one canvas: each to the right of or below those before it (ComfyUI's
    default for the released weights, comfy/ldm/flux/model.py; stable-diffusion.cpp and InvokeAI do the same).
stitch: one canvas in pixels, encoded as one reference: the pictures from left to right, scaled to the first one's
    height (ComfyUI's node ImageStitch with its defaults).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from ..errors import KontextError
from .images import Size, preferred_size
from .picture_limits import MAX_PIXELS, too_large
from .reference_options import REFERENCE_METHODS, ReferenceSize, one_of, parse_rule
from .sampler_entry import SamplerEntry
from .sizes import checked_size, distortion, similar_size

SAME_ASPECT = 1.03
"""Pictures are resized to the output's size if that stretches them by no more than this, or than the preferred size
would."""

WIDEST = 2.4
"""Long side to short side. FLUX.1 Kontext's widest preferred size has 2.33; wider pictures are squashed to it."""


class Place(NamedTuple):
    """The position of a reference's first token: its image index, and the row and column in pixels."""

    image: int
    top: int
    left: int


@dataclass(frozen=True)
class Reference:
    """A picture, upright and in RGB, the (width, height) to encode it at, and its place."""

    picture: Image.Image
    size: Size
    place: Place


def place_references(
    pictures: Sequence[Image.Image],
    method: str,
    rule: ReferenceSize,
    output: Size,
    settings: SamplerEntry,
) -> tuple[tuple[Reference, ...], list[str]]:
    """The references that `pictures` become, and what the user should be warned of.

    Args:
        pictures: upright and in RGB.
        method: one of REFERENCE_METHODS.
        rule: the size to encode them at.
        output: the output's size.
        settings: of the bundle.

    Raises:
        KontextError: the canvas of `stitch` is too large.
    """
    stitched = method == "stitch" and len(pictures) > 1
    encoded = [stitch(pictures)] if stitched else pictures
    sizes, notes = [], []
    for index, picture in enumerate(encoded):
        size, preferred = encoded_size(picture, rule, output, settings)
        sizes.append(size)
        name = "canvas of the stitched references" if stitched else "picture"
        # Only the first reference lies on the output; of a canvas or a further one nobody expects its aspect.
        if rule == "auto" and index == 0 and not stitched and not agrees(picture.size, output, preferred):
            note = (
                f"the output of {shown(output)} has another aspect than the picture of {shown(picture.size)}, which is "
                f"encoded at {shown(size)}: the edit may crop or zoom it"
            )
            similar = similar_size(picture.size, output, settings.size_multiple)
            notes.append(
                note if similar == output else f"{note}; an output of {shown(similar)} has its aspect"
            )
        aspect = max(picture.size) / min(picture.size)
        if aspect > WIDEST and distortion(picture.size, size) > SAME_ASPECT:
            notes.append(
                f"the {name} of {shown(picture.size)} is {aspect:.3g}:1, beyond the {WIDEST}:1 that the model "
                f"knows: it is squashed to {shown(size)}"
            )
    places = places_of(method, sizes)
    return tuple(map(Reference, encoded, sizes, places)), notes


def encoded_size(
    picture: Image.Image, rule: ReferenceSize, output: Size, settings: SamplerEntry
) -> tuple[Size, Size]:
    """The size to encode `picture` at, and its preferred size."""
    preferred = preferred_size(picture.size, settings.preferred_sizes)
    if not isinstance(rule, str):
        return rule, preferred
    if rule == "output" or (rule == "auto" and agrees(picture.size, output, preferred)):
        return output, preferred
    return preferred, preferred


def agrees(picture: Size, output: Size, preferred: Size) -> bool:
    """Whether the output's size stretches a picture no more than SAME_ASPECT, or than its preferred size does."""
    return distortion(picture, output) <= max(SAME_ASPECT, distortion(picture, preferred))


def places_of(method: str, sizes: Sequence[Size]) -> list[Place]:
    """The places of references of these sizes, in order."""
    if method != "offset":
        return [Place(index, 0, 0) for index in range(1, len(sizes) + 1)]
    places = []
    right = bottom = 0  # of everything placed so far
    for width, height in sizes:
        top, left = (0, right) if height + bottom > width + right else (bottom, 0)
        right, bottom = max(right, left + width), max(bottom, top + height)
        places.append(Place(1, top, left))
    return places


def stitch(pictures: Sequence[Image.Image]) -> Image.Image:
    """RGB pictures side by side, scaled to the first one's height with Lanczos; widths are rounded down."""
    height = pictures[0].height
    widths = [max(1, int(height * (picture.width / picture.height))) for picture in pictures]
    if sum(widths) * height > MAX_PIXELS:
        raise KontextError(too_large("the canvas of the stitched references", MAX_PIXELS))
    canvas = Image.new("RGB", (sum(widths), height))
    left = 0
    for picture, width in zip(pictures, widths, strict=True):
        same = picture.size == (width, height)
        canvas.paste(
            picture if same else picture.resize((width, height), Image.Resampling.LANCZOS), (left, 0)
        )
        left += width
    return canvas


def checked_method(method: str | None, settings: SamplerEntry) -> str:
    """`method`, or the bundle's for None. Raises KontextError if there is no such method."""
    if method is None:
        return settings.reference_method
    if method not in REFERENCE_METHODS:
        raise KontextError(f"the reference method must be {one_of(REFERENCE_METHODS)}, not {method!r:.40}")
    return method


def checked_rule(rule: ReferenceSize, settings: SamplerEntry) -> ReferenceSize:
    """`rule` with its size read and checked. Raises KontextError if it is none, or no network takes the size."""
    if isinstance(rule, str):
        rule = parse_rule(rule)
    return rule if isinstance(rule, str) else checked_size(rule, settings, "reference size")


def shown(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
