"""Layouts by name."""

from __future__ import annotations

import pytest

from kontext.errors import KontextError
from kontext.export.layouts.registry import LAYOUTS, describe_layouts, parse_layout
from kontext.model.networks import NETWORKS
from kontext.quant.formats import FORMATS


def test_names_and_variants() -> None:
    assert parse_layout("bfl") == (LAYOUTS["bfl"], "")
    with pytest.raises(KontextError, match="'bf' is not a layout: choose from diffusers, bfl"):
        parse_layout("bf")
    with pytest.raises(KontextError, match=r"bfl has no variant 'x': write --to bfl$"):
        parse_layout("bfl:x")
    with pytest.raises(KontextError, match=r"diffusers has no variant 'NF4': write --to diffusers --nf4$"):
        parse_layout("diffusers:NF4")
    with pytest.raises(KontextError, match="gguf has no variant 'Q9': choose from gguf:F32, "):
        parse_layout("gguf:Q9")
    assert parse_layout("GGUF:q4_k_m") == (LAYOUTS["gguf"], "Q4_K_M")


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_are_whole(name: str) -> None:
    layout = LAYOUTS[name]
    assert layout.name == name
    assert set(layout.formats) <= {"bf16", "fp16", "fp32", *FORMATS}
    assert set(layout.components) <= set(NETWORKS.values())
    assert layout.is_file != bool(layout.names)
    assert f"{name} for {layout.readers}" in describe_layouts()
