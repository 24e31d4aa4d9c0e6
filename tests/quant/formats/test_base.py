"""A number format that is only a record, in everything that reads records: flags, export, backends, kernels."""

from __future__ import annotations

import dataclasses
import json
import math
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
from kontext.quant.formats.nibbles import unpack_nibbles  # noqa: E402
from kontext.quant.gpus import find_target  # noqa: E402
from kontext.quant.options import Option  # noqa: E402
from kontext.runtime.pipeline import Pipeline  # noqa: E402
from kontext.safetensors_header import BITS  # noqa: E402

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


@pytest.mark.parametrize("name", [*FORMATS, NEW.name])
def test_rounding_in_steps_is_what_is_stored(name: str) -> None:
    """What feedback of errors counts on: values are steps, `nearest` gives those that are stored, and they stay."""
    format = FORMATS[name]
    weight = torch.randn(128, 6, generator=torch.Generator().manual_seed(5)) * torch.arange(1, 7)
    scales = format.scales(weight, torch.float32)
    rows = 128 // len(format.step(*scales))
    assert rows == (format.group or 128)
    steps = format.step(*scales).repeat_interleave(rows, dim=0)
    offset = format.offset(*scales)
    offset = None if offset is None else offset.repeat_interleave(rows, dim=0)
    units = format.units(weight, *scales)
    torch.testing.assert_close(units * steps, weight, rtol=1e-5, atol=1e-6)
    rounded, packed = format.nearest(units, offset), format.pack(units, *scales)
    torch.testing.assert_close(format.dequantize(packed, *scales), rounded * steps, rtol=1e-6, atol=0)
    assert torch.equal(format.nearest(rounded, offset), rounded)
    assert torch.equal(format.pack(rounded, *scales), packed)
    for ours, theirs in zip((packed, *scales), format.quantize(weight, torch.float32), strict=True):
        assert torch.equal(ours, theirs)
    # No other value that the format has is closer: the neighbours are at least as far as what was taken.
    values = torch.cat([rounded.unique(), torch.tensor(format.codes)])
    for column in range(6) if offset is None else ():
        distance = (units[:, column, None] - values).abs().amin(1)
        assert ((units - rounded)[:, column].abs() <= distance + 1e-5).all()


@pytest.mark.parametrize("name", [*FORMATS, NEW.name])
def test_a_weights_shape_and_its_stored_tensors_say_the_same(name: str) -> None:
    format = FORMATS[name]
    inputs, outputs = format.multiples
    assert inputs % (format.group or 1) == 0
    for shape in ((inputs, outputs), (3 * inputs, 5 * outputs)):
        assert format.fits(shape)
        layout = format.layout(shape)
        assert format.weight_shape(layout[0].shape) == shape
        assert math.prod(layout[0].shape) * BITS[layout[0].dtype] == math.prod(shape) * format.bits
        stored = format.quantize(torch.ones(shape), torch.float32)
        assert [tuple(tensor.shape) for tensor in stored] == [each.shape for each in layout]
    assert format.weight_shape((inputs,)) is None
    assert format.weight_shape((1, inputs, outputs)) is None
    assert not format.fits((inputs, outputs, 1))
    assert format.fits((inputs + 1, outputs)) == (inputs == 1)
    assert format.fits((inputs, outputs + 1)) == (outputs == 1)


def test_a_format_of_other_dtypes_is_not_found() -> None:
    """Scales that no network computes in, or values of another format under the same names."""
    int4 = {each.suffix: ("F16" if each.suffix else "U8", each.shape) for each in INT4.layout((128, 64))}
    assert find_format(int4) is INT4
    assert find_format({**int4, "_scale": ("F64", int4["_scale"][1])}) is None
    assert find_format({**int4, "": ("I8", (128, 64)), "_scale": ("F16", (64,))}) is FORMATS["int8"]
    assert find_format({"": ("I8", (128, 64))}) is None


def test_a_branch_and_an_input_scale_do_not_hide_the_format() -> None:
    """The format with the most stored tensors wins: zero points make UINT4 of what has INT4's tensors too."""
    shapes = FORMATS["uint4"].layout((128, 64))
    stored = {each.suffix: ("F32" if each.dtype == "compute" else each.dtype, each.shape) for each in shapes}
    stored |= {"_down": ("F32", (128, 4)), "_up": ("F32", (4, 64)), "_input_scale": ("F32", ())}
    assert find_format(stored) is FORMATS["uint4"]
    del stored["_zero_point"]
    assert find_format(stored) is INT4


@pytest.mark.parametrize("name", ["int4", "uint4", "nf4", "nvfp4"])
def test_kernels_are_given_what_unpacks_the_weight(name: str) -> None:
    """Codes or integers, less a zero point, times a scale: what the kernels compute is what the graph does."""
    format = FORMATS[name]
    weight = torch.randn(128, 6, generator=torch.Generator().manual_seed(6)) + 0.3
    values, *stored = format.quantize(weight, torch.float32)
    codes, scales, zeros = format.kernel_operands(*stored)
    numbers = unpack_nibbles(values, high_first=format.transposed).float()
    axis = 1 if format.transposed else 0
    if codes is not None:
        numbers = codes[numbers.int()]
    elif zeros is not None:
        numbers -= unpack_nibbles(zeros).repeat_interleave(format.group, axis)
    else:
        numbers = numbers - 16 * (numbers > 7)  # two's complement
    restored = numbers * scales.float().repeat_interleave(format.group, axis)
    restored = restored.t() if format.transposed else restored
    torch.testing.assert_close(restored, format.dequantize(values, *stored), rtol=1e-6, atol=0)
