"""All edits and chains with one bundle, and what they are compared with: the reference's own results, and those of the
reference with another seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime import Pipeline
from .chains import chain_region, make_chains, measure_chains
from .known_edits import Chain, KnownEdit
from .regions import EditRegion, Region
from .runs import Instruments, Made, Values, make_edits, measure, region_of
from .summaries import beside_seeds, summary

OTHER_SEED = 1_000_000
"""Added to the seed for the reference's second run: further than there are edits."""


@dataclass(frozen=True)
class Runs:
    """All results of one bundle."""

    edits: dict[int, list[Made]]
    """Steps → results."""
    chains: list[list[Made]]


@dataclass(frozen=True)
class Task:
    """What every bundle does; `done` is called after each edit."""

    edits: Sequence[KnownEdit]
    chains: Sequence[Chain]
    steps: Sequence[int]
    seed: int
    instruments: Instruments
    done: Callable[[], object]

    @property
    def most(self) -> int:
        return max(self.steps)

    def run(self, pipe: Pipeline) -> Runs:
        return self.run_at(pipe, self.steps, self.seed)

    def run_at(self, pipe: Pipeline, steps: Sequence[int], seed: int) -> Runs:
        return Runs(
            {number: make_edits(pipe, self.edits, number, seed, self.done) for number in steps},
            make_chains(pipe, self.chains, self.most, seed, self.done),
        )


@dataclass(frozen=True)
class Comparison:
    """The reference's results, the regions that follow from them, and the values of both of its runs: of all edits at
    the most steps, and of each turn of the chains."""

    task: Task
    runs: Runs
    regions: Sequence[EditRegion | None]
    chain_regions: Sequence[Region | None]
    same: Sequence[Values]
    other: Sequence[Values]
    same_turns: Sequence[Sequence[Values]]
    other_turns: Sequence[Sequence[Values]]

    @classmethod
    def run(cls, pipe: Pipeline, task: Task) -> Comparison:
        """Runs the reference twice."""
        runs = task.run(pipe)
        other = task.run_at(pipe, [task.most], task.seed + OTHER_SEED)
        pictures = [made.picture for made in runs.edits[task.most]]
        regions = [region_of(edit, picture) for edit, picture in zip(task.edits, pictures, strict=True)]
        turns = [chain_region(*each) for each in zip(task.chains, runs.chains, strict=True)]
        return cls(
            task,
            runs,
            regions,
            turns,
            measure_edits(task, runs, runs.edits[task.most], regions),
            measure_edits(task, runs, other.edits[task.most], regions),
            measure_chains(runs.chains, task.chains, runs.chains, turns),
            measure_chains(other.chains, task.chains, runs.chains, turns),
        )

    def entry(self, runs: Runs) -> dict[str, Any]:
        """Everything that is measured of one bundle, as JSON."""
        steps = {
            number: self.compared(
                measure_edits(self.task, self.runs, made, self.regions), self.same, self.other
            )
            for number, made in runs.edits.items()
        }
        most = steps.pop(self.task.most)
        turns = measure_chains(runs.chains, self.task.chains, self.runs.chains, self.chain_regions)
        return {
            **most,
            "fewer_steps": {str(number): values for number, values in steps.items()},
            "turns": [
                self.compared(*values)
                for values in zip(turns, self.same_turns, self.other_turns, strict=True)
            ],
        }

    def compared(
        self, values: Sequence[Values], same: Sequence[Values], other: Sequence[Values]
    ) -> dict[str, Any]:
        return {
            **summary(values, self.task.seed),
            "beside_seeds": beside_seeds(values, other, same, self.task.seed),
        }

    def other_seed(self) -> dict[str, Any]:
        """The reference's second run, as JSON."""
        return {
            **summary(self.other, self.task.seed),
            "seed": self.task.seed + OTHER_SEED,
            "turns": [summary(values, self.task.seed) for values in self.other_turns],
        }


def measure_edits(
    task: Task, reference: Runs, found: Sequence[Made], regions: Sequence[EditRegion | None]
) -> list[Values]:
    known = reference.edits[task.most]
    return [
        measure(made, edit, same, region, task.instruments)
        for made, edit, same, region in zip(found, task.edits, known, regions, strict=True)
    ]
