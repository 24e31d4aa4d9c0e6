"""Options as text, and their bytes against the files that an export lays out."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.weights.plan import stored_entries  # noqa: E402
from kontext.model.dtypes import TORCH_DTYPES  # noqa: E402
from kontext.quant.formats import FORMATS  # noqa: E402
from kontext.quant.options import Option, layer_bytes, parse_options  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402


@pytest.mark.parametrize(
    ("text", "option", "shown"),
    [
        ("fp8", Option("fp8", 0), "fp8"),
        ("int4", Option("int4", None), "int4"),
        ("int4:0", Option("int4", 0), "int4:0"),
        ("INT4:auto", Option("int4", None), "int4"),
        ("int8:32", Option("int8", 32), "int8:32"),
        ("fp8:auto", Option("fp8", None), "fp8:auto"),
        ("nf4", Option("nf4"), "nf4"),
        ("nvfp4", Option("nvfp4", None), "nvfp4"),
        ("fp8+fp8", Option("fp8", 0, "fp8"), "fp8+fp8"),
        ("int4:0+INT8", Option("int4", 0, "int8"), "int4:0+int8"),
        ("int4+fp8", Option("int4", None, "fp8"), "int4+fp8"),
    ],
)
def test_parsing(text: str, option: Option, shown: str) -> None:
    assert Option.parse(text) == option
    assert str(option) == shown
    assert Option.parse(shown) == option


@pytest.mark.parametrize("text", ["int5", "fp16", "int4:", "int4:x", "int4:-1", "", "int4:9999"])
def test_what_is_no_option(text: str) -> None:
    with pytest.raises(KontextError, match="is not a number format: choose from fp8, int8, int4"):
        Option.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nf4+int8", "engines multiply nf4 weights by no rounded inputs"),
        ("int8+fp8", "engines multiply int8 weights by inputs in int8"),
        ("int4+int4", "engines multiply int4 weights by inputs in fp8 or int8"),
    ],
)
def test_inputs_that_no_engine_takes(text: str, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        Option.parse(text)


def test_inputs_are_rounded_as_exports_with_flags_round_them() -> None:
    """Not those of the text in INT8, nor outside the transformer."""
    option = Option.parse("int4+int8")
    image = option.layer("transformer", "single_blocks.0.linear1.weight", (3072, 3072), 2)
    assert image == Layer("int4", 16, "int8", True, "static", True)
    assert option.layer("transformer", "double_blocks.0.txt_mlp.0.weight", (3072, 3072), 2) == Layer(
        "int4", 16
    )
    assert (
        option.layer(
            "text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q.weight", (64, 64), 2
        ).activations
        == ""
    )


def test_lists() -> None:
    assert parse_options("int8, int4,int8") == [Option("int8"), Option("int4", None)]
    with pytest.raises(KontextError, match="at least one"):
        parse_options(" , ")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_bytes_are_those_of_the_file(name: str, rank: int, compute: str) -> None:
    shape, wide = (192, 320), {"fp32": 4, "bf16": 2}[compute]
    entries = stored_entries("w", shape, Layer(name, rank), compute)
    stored = sum(math.prod(each) * TORCH_DTYPES[dtype].itemsize for _, dtype, each in entries)
    assert Option(name, rank).stored_bytes(shape, wide) == stored


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_bytes_of_scaled_static_inputs(compute: str) -> None:
    """Middle, factors and output for the middle of each channel, and the scale, are counted."""
    layer, shape, wide = Layer("int8", 0, "int8", True, "static", True), (192, 320), {"fp32": 4, "bf16": 2}
    entries = stored_entries("w", shape, layer, compute)
    stored = sum(math.prod(each) * TORCH_DTYPES[dtype].itemsize for _, dtype, each in entries)
    plain = Option("int8").stored_bytes(shape, wide[compute])
    assert layer_bytes(layer, shape, wide[compute]) == stored == plain + (2 * 192 + 320 + 1) * wide[compute]


def test_bits_per_weight() -> None:
    shape = (3072, 9216)
    bits = {
        str(option): 8 * option.stored_bytes(shape, 2) / math.prod(shape)
        for option in parse_options("fp8,int4:0,int4")
    }
    assert bits["int4:0"] == pytest.approx(4.25)
    assert 4.25 < bits["int4"] <= 4.5
    assert 8 < bits["fp8"] < 8.01


def test_what_fits() -> None:
    assert Option("int4").fits((128, 6))
    assert not Option("int4").fits((100, 6))
    assert not Option("int4").fits((128, 5))
    assert Option("int8").fits((100, 5))
