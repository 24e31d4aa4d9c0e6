"""Chains of edits, by a pipeline whose drift is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

from kontext.bench.cases import Case
from kontext.bench.edit_fidelity.chains import chain_region, make_chains, measure_chains
from kontext.bench.edit_fidelity.known_edits import KnownEdit, scene_chains
from kontext.bench.edit_fidelity.regions import EditRegion
from kontext.runtime import Pipeline

SOURCE = Image.fromarray(np.full((64, 64, 3), 100, np.uint8))


class Drifting:
    """Makes every picture lighter by some levels; its latents count the edits."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.seeds: list[int] = []

    def edit(
        self,
        pictures: list[Image.Image],
        prompts: list[str],
        *,
        steps: int,
        seed: list[int],
        callback: Callable[..., Any],
    ) -> list[Image.Image]:
        (picture,) = pictures
        self.seeds += seed
        callback(1, 1, np.full((1, 2), 10.0 + self.levels * len(self.seeds), np.float32))
        return [Image.fromarray(np.asarray(picture) + np.uint8(self.levels))]


def step(number: int, region: EditRegion | None) -> KnownEdit:
    """An edit that succeeds while the picture is below 110."""
    case = Case(
        str(number), "local", "go on", lambda: SOURCE, lambda result: int(np.asarray(result).max()) < 110
    )
    return KnownEdit(case, lambda: region)


def strip(number: int) -> EditRegion:
    changed = np.zeros((64, 64), bool)
    changed[:, 8 * number : 8 * number + 8] = True
    return EditRegion(changed, "mask")


def run(levels: int, chains: list[list[KnownEdit]]) -> tuple[Drifting, Any]:
    pipe = Drifting(levels)
    return pipe, make_chains(cast(Pipeline, pipe), chains, 1, 7, lambda: None)


def test_drift_that_is_known() -> None:
    """The reference adds 1 level a turn and the other one 3: after t turns they are 2 t apart, and 3 t from the
    first picture."""
    chains = [[step(turn, strip(turn)) for turn in range(5)]]
    _, known = run(1, chains)
    pipe, found = run(3, chains)
    assert pipe.seeds == [7, 8, 9, 10, 11]
    region = chain_region(chains[0], known[0])
    assert region is not None
    assert region[:, :40].all()
    assert not region[:, 40:].any()
    turns = measure_chains(found, chains, known, [region])
    assert len(turns) == 5
    for turn, (values,) in enumerate(turns, 1):
        assert values["psnr"] == pytest.approx(20 * math.log10(255 / (2 * turn)))
        assert values["kept_psnr"] == pytest.approx(20 * math.log10(255 / (2 * turn)))
        assert values["source_psnr"] == pytest.approx(20 * math.log10(255 / (3 * turn)))
        assert values["latent_distance"] == pytest.approx(2 * turn / (10 + turn))
        assert values["success"] == float(3 * turn < 10)
    for (values,) in measure_chains(known, chains, known, [region]):
        assert values["psnr"] == values["kept_psnr"] == 100


def test_chains_of_different_lengths() -> None:
    chains = [[step(turn, strip(turn)) for turn in range(length)] for length in (2, 3)]
    pipe, known = run(1, chains)
    assert pipe.seeds == [7, 8, 9, 10, 11]
    turns = measure_chains(known, chains, known, [None, None])
    assert [[bool(values) for values in each] for each in turns] == [[True] * 2, [True] * 2, [False, True]]


def test_without_a_mask_the_reference_s_change_is_the_region() -> None:
    """20 levels are visible everywhere, so that nothing is left to keep."""
    chains = [[step(0, strip(0)), step(1, None), step(2, strip(2))]]
    _, known = run(20, chains)
    region = chain_region(chains[0], known[0])
    assert region is not None
    assert region.all()
    (values,) = measure_chains(known, chains, known, [region])[2]
    assert values["psnr"] == 100
    assert values["kept_psnr"] is None


def test_scenes_chains_are_held_out_and_reproducible() -> None:
    first, second = scene_chains(2, 3), scene_chains(2, 3)
    assert [[edit.case.prompt for edit in chain] for chain in first] == [
        [edit.case.prompt for edit in chain] for chain in second
    ]
    for chain in first:
        assert len(chain) == 5
        for edit, following in pairwise(chain):
            result, source = edit.target, following.case.picture()
            assert result is not None
            assert source is not None
            assert np.array_equal(np.asarray(result()), np.asarray(source))
            assert edit.case.accepts is not None
            assert edit.case.accepts(result())
