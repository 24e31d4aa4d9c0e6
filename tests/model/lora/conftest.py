"""The tiny checkpoint, open, and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kontext.model.checkpoint import Checkpoint

    from .fusing import State


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    from kontext.model.checkpoint import Checkpoint

    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def state(tiny_checkpoint: Path) -> State:
    from kontext.model.checkpoint import load_state

    return load_state(tiny_checkpoint)
