"""An edit of a set, and a set of them: instructions, pictures, and what the set says of each."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ...errors import KontextError
from ...runtime.images import open_picture
from .tables import Cell

Source = Image.Image | Path | Cell
"""A picture in memory, in a file, or in a row of a table."""


@dataclass(frozen=True)
class Sample:
    """An edit: its instruction and its reference; None for text-to-image."""

    prompt: str
    source: Source | None
    key: str = ""
    """The set's own name of the edit."""
    category: str = ""
    language: str = ""
    """As the set abbreviates it, such as en; empty if all of it is in one."""
    mask: Source | None = None
    """What the set says an edit may change: the transparent part of this picture, or its white one."""
    target: Source | None = None
    """The set's own result."""
    session: str = ""
    """The edits of one session go on with each other's results, in the order of `turn`; empty if it has none."""
    turn: int = 1

    def picture(self) -> Image.Image | None:
        """The reference. A file is read again each time, so that a folder of photographs need not fit into memory.

        Raises:
            KontextError: it cannot be read.
        """
        return None if self.source is None else open_source(self.source)

    def fault(self) -> str | None:
        """Why the reference cannot be decoded, with the sample's name; None if it can."""
        try:
            self.picture()
        except KontextError as error:
            return f"{self.key}: {error}" if self.key else str(error)
        return None


def open_source(source: Source) -> Image.Image:
    """A picture of a sample. Raises KontextError if it cannot be read."""
    if isinstance(source, Cell):
        return source.picture()
    return open_picture(source) if isinstance(source, Path) else source


@dataclass(frozen=True)
class Samples:
    """`skipped` has a line for every unusable edit: its name and the reason."""

    name: str
    samples: Sequence[Sample]
    skipped: Sequence[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of prompts and pictures: samples of the same digest give the same statistics."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(sample.prompt.encode() + b"\0")
            source = sample.source
            if isinstance(source, Path):
                digest.update(source.read_bytes())
            elif isinstance(source, Cell):
                digest.update(source.read())
            elif source is not None:
                digest.update(repr(source.size).encode() + source.tobytes())
        return digest.hexdigest()

    def categories(self) -> list[str]:
        """In the order of their first samples; one empty name if the set has none."""
        return list(dict.fromkeys(sample.category for sample in self.samples))

    def subset(self, count: int, seed: int) -> Samples:
        """`count` of the samples, or all if there are no more, in their order. Each category has its share, rounded so
        that every category is there if `count` allows it; the same seed takes the same."""
        if count >= len(self.samples):
            return self
        return replace(self, samples=[self.samples[index] for index in self.drawn(count, seed)])

    def drawn(self, count: int, seed: int) -> list[int]:
        """The places of the samples of `subset`, in order."""
        if count >= len(self.samples):
            return list(range(len(self.samples)))
        places: dict[str, list[int]] = {name: [] for name in self.categories()}
        for index, sample in enumerate(self.samples):
            places[sample.category].append(index)
        chosen: list[int] = []
        for name, share in shares({name: len(each) for name, each in places.items()}, count).items():
            chosen += random.Random(f"{seed} {name}").sample(places[name], share)
        return sorted(chosen)

    def usable(self, count: int, seed: int) -> Samples:
        """`subset`, checked. What cannot be decoded is listed as skipped, and another sample of its category, or of all
        if that has no more, takes its place; the same seed takes the same."""
        rest = set(range(len(self.samples)))
        usable: list[int] = []
        skipped: list[str] = []
        draw = self.drawn(count, seed)
        while draw:
            rest -= set(draw)
            faults = {place: fault for place in draw if (fault := self.samples[place].fault()) is not None}
            usable += [place for place in draw if place not in faults]
            skipped += faults.values()
            lost = [self.samples[place].category for place in faults]
            draw = self.replacements(lost, rest, random.Random(f"{seed} {len(skipped)}"))
        samples = [self.samples[place] for place in sorted(usable)]
        return replace(self, samples=samples, skipped=[*self.skipped, *skipped])

    def replacements(self, lost: Sequence[str], rest: set[int], draw: random.Random) -> list[int]:
        """Places among `rest`, for as many samples as were lost of these categories, or fewer if there are no more."""
        chosen: list[int] = []
        for category in lost:
            left = sorted(rest.difference(chosen))
            of_category = [place for place in left if self.samples[place].category == category]
            if left:
                chosen.append(draw.choice(of_category or left))
        return sorted(chosen)

    def checked(self) -> Samples:
        """Without the samples whose reference cannot be decoded, which are listed as skipped: they are found before
        hours of work."""
        usable, skipped = [], list(self.skipped)
        for sample in self.samples:
            if (fault := sample.fault()) is None:
                usable.append(sample)
            else:
                skipped.append(fault)
        return replace(self, samples=usable, skipped=skipped)


def shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """How many of each group to take for `count` in all, below the sum of `sizes`: in proportion (largest remainders),
    and one at least where there are as many as groups."""
    total = sum(sizes.values())
    least = 1 if count >= len(sizes) else 0
    exact = {name: count * size / total for name, size in sizes.items()}
    result = {name: max(least, math.floor(share)) for name, share in exact.items()}

    def by_need(names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: result[name] - exact[name])

    while sum(result.values()) < count:
        result[by_need(name for name in sizes if result[name] < sizes[name])[0]] += 1
    while sum(result.values()) > count:
        result[by_need(name for name in sizes if result[name] > least)[-1]] -= 1
    return result
