"""Chains of edits of the tiny world: each edits the target of the one before, as a user goes on with a picture.

All edits of a chain are local, so that the background stays the first picture's to the end.
"""

from __future__ import annotations

import numpy as np

from .edits import Edit, add_to, in_split, move_in, object_scene, recolour_in, remove_from

TURNS = (recolour_in, add_to, move_in, remove_from, recolour_in)
"""Two objects become three and two again: training knows no scenes of more."""

TRIES = 200
"""For an edit of one scene that is in the split; then the chain starts again with another scene."""


def sample_chain(rng: np.random.Generator, split: str = "test") -> list[Edit]:
    """A random chain of five edits, all of them in the split "train" or "test" (`edits.is_held_out`)."""
    while True:
        scene = object_scene(rng, 2, 2)
        chain: list[Edit] = []
        for change in TURNS:
            tried = (change(rng, scene) for _ in range(TRIES))
            edit = next((edit for edit in tried if in_split(edit.keys, split)), None)
            if edit is None:
                break
            chain.append(edit)
            scene = edit.target
        else:
            return chain
