"""Drift: edits in a chain, measured after every turn against the first picture and against the reference's chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...runtime import Pipeline
from .known_edits import Chain
from .regions import Region, at_size, changed_part
from .runs import Made, Values, against, make_chain, regional, source_at

ChainRegions = Sequence[Sequence[Region | None]]
"""Of each chain and turn: what its edits up to this one may have changed of the first picture."""


def make_chains(
    pipe: Pipeline, chains: Sequence[Chain], steps: int, seed: int, done: Callable[[], object]
) -> list[list[Made]]:
    """Makes all chains; every edit of all has its own seed."""
    results = []
    for chain in chains:
        results.append(make_chain(pipe, chain, steps, seed, done))
        seed += len(chain)
    return results


def chain_regions(chains: Sequence[Chain], reference: Sequence[Sequence[Made]]) -> ChainRegions:
    """The regions of all turns up to each, joined; from the first turn on whose region nobody says, what the
    reference's chain has changed instead."""
    return [regions_of(chain, made) for chain, made in zip(chains, reference, strict=True)]


def regions_of(chain: Chain, reference: Sequence[Made]) -> list[Region | None]:
    size = reference[0].picture.size
    source = source_at(chain[0], size)
    joined: Region | None = np.zeros(size[::-1], dtype=bool)
    result: list[Region | None] = []
    for edit, made in zip(chain, reference, strict=True):
        known = edit.region() if joined is not None else None
        joined = None if joined is None or known is None else joined | at_size(known.changed, size)
        if joined is not None:
            result.append(joined)
        else:
            result.append(None if source is None else changed_part(source, made.picture))
    return result


def measure_chains(
    found: Sequence[Sequence[Made]],
    chains: Sequence[Chain],
    reference: Sequence[Sequence[Made]],
    regions: ChainRegions,
) -> list[list[Values]]:
    """For each turn the values of all chains; none of a chain that has ended."""
    turns = max(map(len, chains), default=0)
    return [
        [
            measure_turn(made[turn], same[turn], chain, areas[turn]) if turn < len(chain) else {}
            for made, same, chain, areas in zip(found, reference, chains, regions, strict=True)
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
