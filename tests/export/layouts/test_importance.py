"""Which inputs a layout's calibration watches."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.export.calibration.samples import scene_samples
from kontext.export.calibration.watched_networks import watched_linears
from kontext.export.cli.source_flags import EMBEDDED
from kontext.export.layouts.importance import measure, watched
from kontext.export.progress import Progress
from kontext.model.checkpoint import Checkpoint


def test_the_transformers_blocks_are_watched(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    found = watched_linears(checkpoint, watched(checkpoint))
    assert {network for network, weights in found.items() if weights} == {"transformer", "modulation"}
    names = [name for weights in found.values() for name in weights]
    assert len(names) == 10 + 2 * 3  # of one double and two single blocks
    assert all(name.startswith(("double_blocks.", "single_blocks.")) for name in names)


def test_the_embedded_models_are_shipped() -> None:
    checkpoint = Checkpoint.open(EMBEDDED)
    statistics = measure(checkpoint, scene_samples(), Progress(False))
    assert statistics.file is not None
    assert statistics.file.name == "calibration.safetensors"
    inputs = statistics.inputs["modulation"]["single_blocks.0.modulation.lin.weight"]
    assert inputs.mean_square().shape == (192,)
    assert inputs.mean_square().min() > 0
