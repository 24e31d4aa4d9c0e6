"""What a manifest says of a layer's inputs, and every way in which that does not go together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.quant.formats import FORMATS
from kontext.quant.formats.layer_fields import check_layers


def manifest(layer: Any) -> dict[str, Any]:
    return {"precision": {"layers": {"transformer": {"x.weight": layer}}}}


def test_what_goes_together() -> None:
    """Oracle: the records of the formats."""
    for name, format in FORMATS.items():
        check_layers(manifest(name), Path("b"))
        for way in format.input_roundings:
            check_layers(manifest({"format": name, "activations": name, "rounding": way.value}), Path("b"))
        for other in format.unpacked_inputs:
            check_layers(manifest({"format": name, "activations": other, "rounding": "static"}), Path("b"))
    check_layers({}, Path("b"))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"format": "fp8", "activations": "fp8", "rounding": "junk"}, "rounding is 'junk', expected static"),
        ({"format": "fp8", "activations": "fp8", "rounding": 5}, "rounding is 5, expected static"),
        (
            {"format": "fp8", "activations": "fp8", "rounding": "blocks"},
            "rounding is 'blocks', expected static",
        ),
        ({"format": "fp8", "activations": "fp8", "rounding": []}, "rounding is .*, expected static"),
        ({"format": "fp8", "rounding": "static"}, "rounding is 'static', expected nothing"),
        ({"format": "fp8", "activations": "fp4"}, "activations is 'fp4', expected fp8, int8, nvfp4"),
        ({"format": "fp8", "activations": {}}, "activations is "),
        (
            {"format": "int4", "activations": "nvfp4"},
            "nvfp4 activations need nvfp4 weights, and these are int4",
        ),
        ({"format": "int9"}, "unknown number format 'int9'"),
        ({"format": "int8", "ranks": 3}, "unknown field 'ranks'"),
        (None, "unknown number format None"),
    ],
)
def test_faults_name_the_file_and_the_layer(layer: Any, message: str) -> None:
    with pytest.raises(
        KontextError, match=rf"manifest\.json: precision.layers, transformer x.weight: .*{message}"
    ):
        check_layers(manifest(layer), Path("b"))


def test_no_pytorch_is_imported() -> None:
    code = "import sys, kontext.quant.formats.layer_fields; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
