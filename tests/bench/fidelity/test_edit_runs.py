"""Runs of edits: recorded, and forced along another run's trajectory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.bench.cases import scene_cases
from kontext.bench.fidelity.edit_runs import run_edit
from kontext.export.calibration.teacher_forcing import Recorder, TeacherForced
from kontext.runtime import Pipeline


def test_forced_steps_start_where_the_reference_was(bundles: dict[str, Path]) -> None:
    teacher, student = Pipeline.load(bundles["fp32"]), Pipeline.load(bundles["int4"])
    edit = next(case for case in scene_cases(1, 0) if case.category == "recolour")
    recorder = Recorder(teacher.backend)
    teacher.backend = recorder
    expected = run_edit(teacher, edit, 3, 0)
    forced = TeacherForced(student.backend, recorder.velocities)
    student.backend = forced
    found = run_edit(student, edit, 3, 0)
    for ours, theirs in zip(found.latents, expected.latents, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert min(forced.noise.values()) > 0
    assert len(forced.signal) == 3
