"""A sensitivity report as text: a column for each format, and the picture's only where it was measured."""

from __future__ import annotations

from kontext.export.cli.sensitivity_text import render_sensitivity
from kontext.quant.sensitivity import LayerSensitivity, Sensitivity

LAYERS = {
    "transformer": {
        "a.weight": LayerSensitivity((64, 64), errors={"fp8": 1e-4, "int4": 1e-2}),
        "b.weight": LayerSensitivity((64, 48), errors={"fp8": 1e-3}),
        "c.weight": LayerSensitivity((64, 64), errors={"fp8": 1e-5, "int4": 1e-1}),
    }
}


def rows(report: Sensitivity) -> list[list[str]]:
    return [line.split() for line in render_sensitivity(report).splitlines() if line.startswith("    ")]


def test_every_format_has_a_column() -> None:
    found = rows(Sensitivity("m", "weights", ["fp8", "int4"], LAYERS))
    assert found == [
        ["fp8", "int4"],
        ["50.0", "10.0", "transformer:", "c"],
        ["40.0", "20.0", "transformer:", "a"],
        ["30.0", "-", "transformer:", "b"],
    ]


def test_measured_pictures_have_one_too() -> None:
    pictures = [{"network": "transformer", "weight": "c.weight", "psnr": 31.26}]
    found = rows(Sensitivity("m", "velocity", ["fp8", "int4"], LAYERS, pictures=pictures))
    assert found[0] == ["fp8", "int4", "picture"]
    assert [row[2] for row in found[1:]] == ["31.3", "-", "-"]
