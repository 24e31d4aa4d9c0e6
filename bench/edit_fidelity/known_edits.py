"""Edits with what their scene or their data set knows of the right result, alone and in chains."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import KontextError, one_line
from ...export.edit_sets.layouts import read_edit_set
from ...export.edit_sets.samples import Sample, Samples, open_source
from ...tiny.chains import sample_chain
from ...tiny.edits import KINDS, Edit
from ...tiny.regions import untouched
from ...tiny.scenes import UNIT, Scene, render, render_masks
from ..cases import Case, sample_case, scene_case, usable_samples
from ..edits import held_out
from .regions import EditRegion, masked_part
from .text import read_line, read_words, wanted_text

CHARACTER_KINDS = ("ps_human", "motion_change", "action")
"""What GEdit-Bench and ImgEdit call edits of people; other sets' categories have "character" in their names."""

BOARD_RIM = 4 / UNIT
"""Share of a picture's side that a sign's outline and corners take, which are not read."""


@dataclass(frozen=True)
class KnownEdit:
    case: Case
    region: Callable[[], EditRegion | None] = lambda: None
    """Where it may change the picture; None: nobody says."""
    wanted: str | None = None
    """The text that it asks for."""
    read: Callable[[Image.Image], Sequence[str]] = read_words
    """Reads a result's words."""
    target: Callable[[], Image.Image] | None = None
    """The one right result, if there is one."""

    @property
    def has_character(self) -> bool:
        """Whether the same character or person must be recognized in the result."""
        category = self.case.category.lower()
        return "character" in category or category in CHARACTER_KINDS


Chain = Sequence[KnownEdit]
"""Edits, each of the result of the one before; the first has the picture."""


def scene_edits(count: int, seed: int) -> list[KnownEdit]:
    """`count` held-out edits of each kind: the same as `cases.scene_cases`."""
    return [
        scene_edit(f"{kind}-{number}", edit)
        for kind in KINDS
        for number, edit in enumerate(held_out(kind, count, seed))
    ]


def scene_chains(count: int, seed: int) -> list[Chain]:
    """`count` chains of five held-out edits."""
    rng = np.random.default_rng([seed, *b"chain"])
    return [
        [scene_edit(f"chain-{number}-{turn}", edit) for turn, edit in enumerate(sample_chain(rng), 1)]
        for number in range(count)
    ]


def scene_edit(key: str, edit: Edit) -> KnownEdit:
    target = edit.target
    wanted = target.sign.word if target.sign and edit.kind == "text" else None
    return KnownEdit(
        scene_case(key, edit),
        lambda: EditRegion(~untouched(edit), "scene"),
        wanted,
        lambda picture: read_line(board(picture, target)).split(),
        lambda: Image.fromarray(render(target)),
    )


def board(picture: Image.Image, scene: Scene) -> Image.Image:
    """The part of a picture where the scene has its sign, without the sign's rim."""
    mask = render_masks(scene, picture.size)["sign"] > 0.5
    rows, columns = np.nonzero(mask)
    rim = round(BOARD_RIM * min(picture.size))
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return picture.crop((left + rim, top + rim, right - rim, bottom - rim))


def data_edits(
    path: Path, count: int, chains: int, seed: int, language: str
) -> tuple[list[KnownEdit], list[Chain]]:
    """`count` edits of a data set, a share of each category, and `chains` of its sessions of several turns; what cannot
    be used is named on stderr and left out.

    Raises:
        KontextError: it has no edits that can be used.
    """
    every = read_edit_set(path, language)
    found = usable_samples(every, path, count, seed)
    edits = [data_edit(sample) for sample in found if sample.source is not None]
    if not edits:
        raise KontextError(f"{path} has no edits of pictures: all of them draw from text alone")
    known = sessions(every)
    random.Random(f"{seed} chains").shuffle(known)
    readable = (
        session for session in known if not replace(every, samples=session[:1], skipped=[]).checked().skipped
    )
    return edits, [[data_edit(sample) for sample in session] for session in islice(readable, chains)]


def sessions(samples: Samples) -> list[list[Sample]]:
    """The edits that go on with the results of others: those of one session, from its first turn on without gaps."""
    turns: dict[str, dict[int, Sample]] = {}
    for sample in samples.samples:
        if sample.session and sample.source is not None:
            turns.setdefault(sample.session, {})[sample.turn] = sample
    found = []
    for known in turns.values():
        chain: list[Sample] = []
        while len(chain) + 1 in known:
            chain.append(known[len(chain) + 1])
        if len(chain) > 1:
            found.append(chain)
    return found


def data_edit(sample: Sample) -> KnownEdit:
    def region() -> EditRegion | None:
        if sample.mask is None:
            return None
        try:
            part = masked_part(open_source(sample.mask))
        except KontextError as error:
            print(f"mask not used: {one_line(str(error))}", file=sys.stderr)
            return None
        return None if part is None else EditRegion(part, "mask")

    return KnownEdit(sample_case(sample), region, wanted_text(sample.prompt))
