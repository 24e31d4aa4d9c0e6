"""Axes of the fidelity's plots, on a committed result."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torch")

from kontext.bench.html_report.charts import svg
from kontext.bench.html_report.fidelity_charts import steps_chart

from .conftest import RESULTS


def test_steps_are_whole_numbers() -> None:
    result = json.loads((RESULTS / "fidelity.json").read_text())
    result["steps"] = 3
    for entry in (*result["bundles"].values(), *result["peers"].values()):
        entry["velocity_snr_steps"] = entry["velocity_snr_steps"][:3]
    (chart,) = steps_chart(result)
    drawn = svg(chart, (510, 340), narrow=False)
    assert re.findall(r">(\d\.\d)<", drawn) == []
    assert re.findall(r">(\d)<", drawn)[:3] == ["1", "2", "3"]
