"""A number format that is only a record, in everything that reads records: flags, export, backends, kernels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from kontext.export.cli.main import main  # noqa: E402
from kontext.kernels.variants import variants  # noqa: E402
from kontext.quant.formats import FORMATS, find_format  # noqa: E402
from kontext.quant.formats.int4 import INT4  # noqa: E402
from kontext.quant.gpus import find_target  # noqa: E402
from kontext.quant.options import Option  # noqa: E402
from kontext.runtime.pipeline import Pipeline  # noqa: E402

NEW = dataclasses.replace(
    INT4, name="int4g32", group=32, flag_help="as INT4 in groups of 32", kernel="", kernel_inputs=()
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, NEW.name, NEW)


def test_a_record_is_all_that_an_export_and_both_backends_need(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "bundle"
    with untraced(tiny_bundle):
        assert main([str(tiny_checkpoint), "-o", str(folder), "--int4g32", "--quiet"]) == 0
    layers = json.loads((folder / "manifest.json").read_text())["precision"]["layers"]["transformer"]
    assert set(layers.values()) == {NEW.name}
    picture = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    onnx, ours = (
        np.asarray(
            Pipeline.load(folder, backend=backend, device="cpu").edit(picture, "make it red", steps=2),
            np.float64,
        )
        for backend in ("onnxruntime", "torch")
    )
    # ONNX Runtime rounds the inputs of 4-bit weights to 8 bits, and the torch backend does not.
    assert np.abs(onnx - ours).mean() < 2


def test_planner_and_kernels_know_it_too() -> None:
    assert str(Option.parse("int4g32:0")) == "int4g32:0"
    assert Option("int4g32").stored_bytes((64, 64), 2) == 64 * 32 + 2 * 64 * 2
    assert NEW.name in find_target("sm_86").formats
    assert any(variant.name == "dequantize int4g32, qkv" for variant in variants(86))


@pytest.mark.parametrize("name", FORMATS)
def test_stored_tensors_name_their_format(name: str) -> None:
    stored = {each.suffix: (each.dtype, each.shape) for each in FORMATS[name].layout((128, 64))}
    found = find_format(
        {key: (dtype.replace("compute", "F16"), shape) for key, (dtype, shape) in stored.items()}
    )
    assert found is FORMATS[name]


def test_groups_tell_formats_of_the_same_tensors_apart() -> None:
    stored = {each.suffix: ("BF16" if each.suffix else "U8", each.shape) for each in NEW.layout((128, 64))}
    assert find_format(stored) is NEW
    assert find_format({"": ("BF16", (128, 64))}) is None
