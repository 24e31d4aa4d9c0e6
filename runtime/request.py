"""The request of an edit: arguments checked, defaults filled in, one row for each picture to make."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias

import numpy as np
from PIL import Image

from ..errors import KontextError
from .images import Size, preferred_size
from .inpainting import Repaint, RepaintOptions, Repaints, skipped_steps
from .lora import NO_LORAS, Loras
from .noise import check_seed
from .number_checks import checked_scale
from .reference_options import ReferenceSize
from .references import Place, Reference, checked_method, checked_rule, place_references
from .rgb import upright_rgb
from .sampler_entry import SamplerEntry
from .sizes import checked_size
from .true_cfg import CfgOptions, TrueCfg, read_cfg

References: TypeAlias = "Image.Image | Sequence[Image.Image]"
Images: TypeAlias = "References | Sequence[References | None] | None"


@dataclass(frozen=True)
class Row:
    """One picture to make."""

    prompt: str
    pictures: tuple[Image.Image, ...]
    """The references as they were given, upright and in RGB."""
    references: tuple[Reference, ...]
    """What is encoded of them."""
    seed: int
    size: Size
    reference_method: str
    reference_size: ReferenceSize
    """The rule that the references' sizes follow."""
    negative: str | None = None
    """The negative prompt, of a request with true CFG."""
    repaint: Repaint | None = None

    @property
    def shape(self) -> tuple[Size | Place | bool, ...]:
        """The output's size, whether a picture is repainted, the references' sizes and places; rows of one shape can
        run as one batch."""
        return (
            self.size,
            self.repaint is not None,
            *(each for reference in self.references for each in (reference.size, reference.place)),
        )

    def token_grids(self, side: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """(rows, columns) of the output and of each reference in tokens of `side` pixels, and the position (image, row,
        column) of the first token of each."""
        sizes = [self.size, *(each.size for each in self.references)]
        places = [each.place for each in self.references]
        grids = [(height // side, width // side) for width, height in sizes]
        return grids, [(0, 0, 0), *((image, top // side, left // side) for image, top, left in places)]

    @property
    def encoded(self) -> tuple[Reference | Repaint, ...]:
        """All that is encoded."""
        return self.references if self.repaint is None else (*self.references, self.repaint)

    @property
    def seen(self) -> tuple[Image.Image, ...]:
        """Every picture that the edit is made from, for content filters: the references, then the one to repaint, if
        it is none of them."""
        if self.repaint is None or any(each is self.repaint.picture for each in self.pictures):
            return self.pictures
        return (*self.pictures, self.repaint.picture)


@dataclass(frozen=True)
class Request:
    rows: tuple[Row, ...]
    steps: int
    """Of the schedule, from noise to picture."""
    guidance: float
    skipped: int = 0
    """How many of the first steps are left out."""
    cfg: TrueCfg | None = None
    loras: Loras = NO_LORAS

    @property
    def run_steps(self) -> int:
        return self.steps - self.skipped

    @property
    def passes(self) -> int:
        """How often all steps together run the network for a row: twice in a step with true CFG."""
        return self.run_steps + (0 if self.cfg is None else self.cfg.guided(self.run_steps))

    def batches(self) -> list[list[int]]:
        """Indices of the rows that run together, ordered by their first row."""
        groups: dict[tuple[Size | Place | bool, ...], list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(row.shape, []).append(index)
        return list(groups.values())


def build_request(
    settings: SamplerEntry,
    image: Images,
    prompt: str | Sequence[str],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | Sequence[int] = 0,
    size: Size | None = None,
    num_images: int = 1,
    reference_method: str | None = None,
    reference_size: ReferenceSize = "auto",
    repaint: RepaintOptions | None = None,
    cfg: CfgOptions | None = None,
    loras: Loras = NO_LORAS,
) -> Request:
    """The request that these arguments of `Pipeline.edit` make; warns of pictures that will not look as given.

    Raises KontextError if one of the arguments is wrong.
    """
    steps = whole(settings.steps if steps is None else steps, "steps")
    num_images = whole(num_images, "num_images")
    guidance = checked_scale(settings.guidance if guidance is None else guidance, "guidance")
    prompts = prompts_of(prompt)
    seeds = seeds_of(seed, len(prompts) * num_images)
    if size is not None:
        size = checked_size(size, settings)
    method = checked_method(reference_method, settings)
    rule = checked_rule(reference_size, settings)
    if rule == "auto" and size is None:
        rule = "preferred"  # the output takes its size from the first reference, not the references theirs from it
    repaints = Repaints(repaint or RepaintOptions(), settings)
    skipped = skipped_steps(steps, repaints.options.strength)
    true_cfg, negatives, notes = read_cfg(cfg or CfgOptions(), len(prompts))
    rows: list[Row] = []
    placed: dict[tuple[int, ...], tuple[Reference, ...]] = {}
    warned: dict[str, None] = dict.fromkeys(notes)
    if guidance < 0:
        warned[f"guidance {guidance:g} is below 0, which the model was not trained with: 2.5 is usual"] = None
    if not all(text.strip() for text in prompts):
        warned["the prompt is empty: say what to change"] = None
    for text, negative, pictures in zip(prompts, negatives, pictures_of(image, prompt), strict=True):
        base = pictures if repaints.init is None else [repaints.init]
        output, same = size or default_size(settings, base), tuple(map(id, pictures))
        if same not in placed:
            placed[same], notes = place_references(pictures, method, rule, output, settings)
            warned |= dict.fromkeys(notes)
        repainted, notes = repaints(pictures, output)
        warned |= dict.fromkeys(notes)
        for _ in range(num_images):
            rows.append(
                Row(
                    text,
                    tuple(pictures),
                    placed[same],
                    seeds[len(rows)],
                    output,
                    method,
                    rule,
                    negative,
                    repainted,
                )
            )
    for note in warned:
        warnings.warn(note, stacklevel=3)
    return Request(tuple(rows), steps, guidance, skipped, true_cfg, loras)


def whole(value: object, name: str) -> int:
    if not isinstance(value, Integral) or int(value) < 1:
        raise KontextError(f"{name} must be a whole number of 1 or more, not {value!r}")
    return int(value)


def prompts_of(prompt: object) -> list[str]:
    """The prompts of an edit, of which there is at least one."""
    if not isinstance(prompt, (str, Sequence)) or isinstance(prompt, bytes):
        raise KontextError(f"prompt must be a text, or a list of texts, not {prompt!r}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise KontextError("prompt is an empty list: give at least one prompt")
    for each in prompts:
        if not isinstance(each, str):
            raise KontextError(f"each prompt must be a text, not {each!r}")
    return prompts


def seeds_of(seed: object, count: int) -> list[int]:
    """The seed of each picture: counted up from a number, or those of a list."""
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds = [int(seed) + index for index in range(count)]
    elif isinstance(seed, (list, tuple, range, np.ndarray)) and all(
        isinstance(each, Integral) for each in seed
    ):
        seeds = [int(each) for each in seed]
        if len(seeds) != count:
            raise KontextError(
                f"seed is a list of {len(seeds)}, and the edit makes {count}: give one for each picture, or one number"
            )
    else:
        raise KontextError(f"seed must be a whole number, or a list with one for each picture, not {seed!r}")
    for each in (min(seeds), max(seeds)):
        check_seed(each)
    return seeds


def default_size(settings: SamplerEntry, pictures: Sequence[Image.Image]) -> Size:
    """The preferred size of the first reference, or the one that is nearest to a square."""
    if pictures:
        return preferred_size(pictures[0].size, settings.preferred_sizes)
    return min(settings.preferred_sizes, key=lambda size: abs(size[0] - size[1]))


def pictures_of(image: Images, prompt: str | Sequence[str]) -> list[list[Image.Image]]:
    """The references of each prompt, upright and in RGB; a picture that is used several times is converted once."""
    converted: dict[int, Image.Image] = {}

    def convert(entry: References | None) -> list[Image.Image]:
        if entry is None:
            return []
        pictures = [entry] if isinstance(entry, Image.Image) else list(entry)
        for picture in pictures:
            if id(picture) not in converted:
                converted[id(picture)] = upright_rgb(picture)
        return [converted[id(picture)] for picture in pictures]

    if isinstance(prompt, str):
        return [convert(image)]  # type: ignore[arg-type]  # upright_rgb refuses lists of lists
    if image is None or isinstance(image, Image.Image):
        return [convert(image) for _ in prompt]
    if len(image) != len(prompt):
        raise KontextError(
            f"{len(prompt)} prompts need one picture for all or {len(prompt)} entries, not {len(image)}"
        )
    return [convert(entry) for entry in image]
