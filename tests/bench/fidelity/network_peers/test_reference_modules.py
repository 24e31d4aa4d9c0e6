"""diffusers' and transformers' modules in place of the reference's graphs compute the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("diffusers")

from kontext.bench.fidelity.network_peers.answering import AnsweringBackend
from kontext.bench.fidelity.network_peers.reference_modules import linears_of, load_modules

if TYPE_CHECKING:
    from .conftest import Edit


def test_unquantized_modules_are_the_reference(edit: Edit) -> None:
    """diffusers is code that we did not write: 80 dB are the rounding of fp32."""
    modules = load_modules(edit.bundle)
    assert edit.velocity_snr(AnsweringBackend(edit.backend, modules.answers())) > 80


def test_each_weight_is_found_in_its_linears(edit: Edit) -> None:
    """The sizes of the linears of a layer add up to the weight's; none is named twice."""
    modules = load_modules(edit.bundle)
    found = linears_of(modules, edit.all_layers)
    paths = [path for each in found.values() for path in each]
    assert len(set(paths)) == len(paths)
    assert found["transformer: single_blocks.1.linear1.weight"] == [
        f"transformer.single_transformer_blocks.1.{name}"
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    assert {where.partition(":")[0] for where in found} == {
        *("text_encoder", "text_encoder_2", "modulation", "transformer")
    }
    sizes = {
        where: sum(modules.get_submodule(path).weight.numel() for path in each)
        for where, each in found.items()
    }
    assert sizes["transformer: double_blocks.0.img_attn.qkv.weight"] == 3 * 64 * 64
    assert sizes["transformer: single_blocks.0.linear1.weight"] == 7 * 64 * 64
    assert sizes["modulation: double_blocks.0.txt_mod.lin.weight"] == 6 * 64 * 64
