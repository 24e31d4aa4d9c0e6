"""Drift: edits in a chain, measured after every turn against the first picture and against the reference's chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...runtime import Pipeline
from .known_edits import Chain
from .regions import Region, at_size, changed_part
from .runs import Made, Values, against, make_chain, regional, source_at


def make_chains(
    pipe: Pipeline, chains: Sequence[Chain], steps: int, seed: int, done: Callable[[], object]
) -> list[list[Made]]:
    """Makes all chains; every edit of all has its own seed."""
    results = []
    for chain in chains:
        results.append(make_chain(pipe, chain, steps, seed, done))
        seed += len(chain)
    return results


def chain_region(chain: Chain, reference: Sequence[Made]) -> Region | None:
    """What the edits of a chain may change of the first picture, all together: the same for every turn, so that turns
    can be compared. For an edit whose region nobody says, what differs after it in the reference's chain; None without
    a picture."""
    source = source_at(chain[0], reference[0].picture.size)
    if source is None:
        return None
    joined: Region = np.zeros((source.height, source.width), dtype=bool)
    for edit, made in zip(chain, reference, strict=True):
        known = edit.region()
        joined |= changed_part(source, made.picture) if known is None else at_size(known.changed, source.size)
    return joined


def measure_chains(
    found: Sequence[Sequence[Made]],
    chains: Sequence[Chain],
    reference: Sequence[Sequence[Made]],
    regions: Sequence[Region | None],
) -> list[list[Values]]:
    """For each turn the values of all chains; none of a chain that has ended."""
    turns = max(map(len, chains), default=0)
    return [
        [
            measure_turn(made[turn], same[turn], chain, region) if turn < len(chain) else {}
            for made, same, chain, region in zip(found, reference, chains, regions, strict=True)
        ]
        for turn in range(turns)
    ]


def measure_turn(made: Made, reference: Made, chain: Chain, changed: Region | None) -> Values:
    """A turn's result beside the reference's at the same turn, and beside the first picture."""
    kept = None if changed is None else ~changed
    first = source_at(chain[0], made.picture.size)
    return {
        **against(made, reference, kept),
        **{f"source_{name}": value for name, value in regional(made.picture, first, kept).items()},
        "success": None if made.success is None else float(made.success),
    }
