"""ComfyUI's notes about a layer's format, in a tensor and in the header: every key counts."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402

FP8 = {"weight": torch.ones(4, 8).to(torch.float8_e4m3fn), "weight_scale": torch.tensor(2.0)}


def header(layers: object, **keys: object) -> dict[str, str]:
    return {"_quantization_metadata": json.dumps({"layers": layers, **keys})}


@pytest.mark.parametrize(
    "note",
    [
        {"format": "float8_e4m3fn"},
        {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
        {"format": "float8_e4m3fn", "orig_dtype": "torch.bfloat16", "orig_shape": [4, 8]},
    ],
)
@pytest.mark.parametrize("place", ["tensor", "header", "both"])
def test_notes(note, place, stored) -> None:
    metadata = header({"m": note}, format_version="1.0") if place != "tensor" else {}
    read = stored(FP8, note if place != "header" else None, metadata)
    assert torch.equal(read.read(), torch.full((4, 8), 2.0))


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"format": "float8_e4m3fn", "group_size": 128}, "unknown key 'group_size'"),
        ({"format": "float8_e4m3fn", "num_experts": 4}, "unknown key 'num_experts'"),
        ({"format": "float8_e4m3fn", "orig_shape": [3, 8]}, r"orig_shape \[3, 8\], expected \[4, 8\]"),
        ({"format": "float8_e4m3fn_blockwise"}, "says 'float8_e4m3fn_blockwise', expected float8_e4m3fn"),
        ({"format": "awq_w4a16"}, "says awq_w4a16, AWQ, which is not read: export from the bf16 original"),
        ({"format": "convrot_w4a4"}, "says convrot_w4a4, ConvRot"),
        ({"format": "asym_w4a8_int8"}, "says asym_w4a8_int8, W4A8"),
        ({"format": "svdquant_w4a4"}, "says svdquant_w4a4, SVDQuant"),
        ({"format": ["nvfp4"]}, "says \"\\['nvfp4'\\]\", expected"),
        ({"scale": 1}, "says 'None', expected"),
    ],
)
@pytest.mark.parametrize("place", ["tensor", "header"])
def test_faults(note, message, place, stored) -> None:
    with pytest.raises(KontextError, match=message):
        stored(FP8, note if place == "tensor" else None, header({"m": note}) if place == "header" else {})


def test_contradiction(stored) -> None:
    with pytest.raises(
        KontextError, match="the note of m and that in the file's header contradict each other"
    ):
        stored(FP8, "float8_e4m3fn", header({"m": {"format": "float8_e5m2"}}))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            header({"n": {"format": "nvfp4"}}),
            "the note of n in its header belongs to n.weight, which is missing",
        ),
        (header({}, producer="x"), "unknown key 'producer'"),
        (header({}, format_version="2.0"), "is of version '2.0', expected 1.0"),
        (header([]), "is not a JSON object of layers"),
        (header({"m": "nvfp4"}), "is not a JSON object of layers"),
        ({"_quantization_metadata": "{"}, "is not a JSON object of layers"),
        ({"_quantization_metadata": '{"layers": {}, "layers": {}}'}, "is not a JSON object of layers"),
    ],
)
def test_damaged_headers(metadata, message, stored) -> None:
    with pytest.raises(KontextError, match=message):
        stored(FP8, None, metadata)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(4),
        torch.tensor(list(b"[1]"), dtype=torch.uint8),
        torch.tensor(list(b"\xff\xfe"), dtype=torch.uint8),
        torch.zeros(9000, dtype=torch.uint8),
        torch.zeros((), dtype=torch.uint8),
    ],
)
def test_damaged_notes(tensor, stored) -> None:
    with pytest.raises(KontextError, match=r"m.comfy_quant is not a JSON object as bytes"):
        stored({**FP8, "comfy_quant": tensor})
