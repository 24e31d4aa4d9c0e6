"""Types of GGUF files: which format each weight of FLUX gets, as ComfyUI-GGUF's converter and patch for llama.cpp have
it."""

from __future__ import annotations

import pytest

from kontext.export.layouts.gguf_types import KEPT, PLAIN, TYPES, asked_form, form_of
from kontext.model.config import TransformerConfig
from kontext.model.gguf_file import KINDS
from kontext.model.network_shapes import modulation, transformer
from kontext.quant.ggml import LIBRARY, PACKAGE

FLUX = {
    weight.name: weight.shape
    for network in (modulation, transformer)
    for weight in network(TransformerConfig())
}
SINGLE = ("linear1", "linear2", "modulation.lin")
DOUBLE = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin")


def is_block(name: str) -> bool:
    return name.endswith(tuple(f"{module}.weight" for module in (*SINGLE, *DOUBLE)))


def test_file_types_are_llama_cpps() -> None:
    gguf = pytest.importorskip("gguf")
    for kind in TYPES.values():
        known = {"ALL_F32", f"MOSTLY_{kind.name}", f"MOSTLY_{kind.name}_S"}
        found = gguf.LlamaFileType(kind.number).name
        assert found in known
        assert (found == "ALL_F32") == (kind.name == "F32")
        assert gguf.GGMLQuantizationType[kind.form] == KINDS[kind.form][0]


@pytest.mark.parametrize("name", TYPES)
def test_formats_of_flux(name: str) -> None:
    """Blocks' matrices have the type's format; nothing falls back; vectors are fp32; first and last layers stay."""
    kind = TYPES[name]
    assert len(FLUX) == 780
    for weight, shape in FLUX.items():
        form = form_of(kind, weight, shape, "BF16")
        assert form == asked_form(kind, weight, shape, "BF16")
        if len(shape) == 1:
            assert form == "F32"
        elif is_block(weight):
            assert form == (kind.fused if "attn.qkv" in weight else kind.form)
            assert not weight.startswith(KEPT)
        else:
            assert weight.startswith(KEPT)
            assert form == (name if name in PLAIN else "BF16")


@pytest.mark.parametrize(
    ("name", "form", "fused"),
    [
        ("Q4_K_S", "Q4_K", "Q4_K"),
        ("Q4_K", "Q4_K", "Q4_K"),
        ("Q3_K_M", "Q3_K", "Q4_K"),
        ("Q4_K_M", "Q4_K", "Q5_K"),
        ("Q5_K_M", "Q5_K", "Q6_K"),
        ("Q2_K", "Q2_K", "Q2_K"),
        ("Q4_0", "Q4_0", "Q4_0"),
    ],
)
def test_mixed_types_are_those_of_the_patch(name: str, form: str, fused: str) -> None:
    assert (TYPES[name].form, TYPES[name].fused) == (form, fused)
    assert TYPES[name].needs_library == (form in LIBRARY)


def test_every_format_has_a_type() -> None:
    assert {kind.form for kind in TYPES.values()} == {*PACKAGE, *LIBRARY}
    assert all(TYPES[form].form == form for form in (*PACKAGE, *LIBRARY))


def test_small_and_narrow_matrices() -> None:
    kind = TYPES["Q4_K_M"]
    assert form_of(kind, "double_blocks.0.img_mlp.0.weight", (4, 256), "BF16") == "F32"
    assert form_of(kind, "double_blocks.0.img_mlp.0.weight", (5, 256), "BF16") == "Q4_K"
    assert form_of(kind, "double_blocks.0.img_mlp.0.weight", (64, 96), "BF16") == "Q5_0"
    assert form_of(kind, "double_blocks.0.img_attn.qkv.weight", (64, 96), "BF16") == "Q5_1"
    assert form_of(kind, "double_blocks.0.img_mlp.0.weight", (64, 40), "BF16") == "F16"
    assert form_of(kind, "img_in.weight", (64, 40), "F32") == "F32"
