"""A library that fails, or that skips a layer, is a line that names the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("diffusers")

import torch

from kontext.bench.fidelity.network_peers.torch_networks import TorchMethod, open_networks
from kontext.errors import KontextError

if TYPE_CHECKING:
    from .conftest import Edit


def narrow_only(network: torch.nn.Module, paths: Sequence[str], _: object) -> None:
    for path in paths:
        linear = network.get_submodule(path)
        if linear.in_features > 64:
            raise ValueError(f"no kernel for {linear.in_features} channels\nsee the manual")
        linear.marked = True


def mark_square(network: torch.nn.Module, paths: Sequence[str], _: object) -> None:
    for path in paths:
        linear = network.get_submodule(path)
        linear.marked = linear.in_features == linear.out_features


def marked_bits(module: torch.nn.Module) -> int | None:
    return 8 if getattr(module, "marked", False) else None


def test_the_layer_that_cannot_be_quantized(edit: Edit) -> None:
    with pytest.raises(KontextError) as caught:
        open_networks("lib-x", TorchMethod(narrow_only, marked_bits), edit.bundle, edit.backend, edit.layers)
    assert str(caught.value) == (
        "lib-x cannot quantize transformer: double_blocks.0.img_mlp.2.weight [64, 256]: no kernel for 256 channels"
    )


def test_a_layer_that_is_left_as_it_is(edit: Edit) -> None:
    with pytest.raises(
        KontextError, match=r"lib-x cannot quantize .*weight \[\d+, \d+\]: it leaves it as it is"
    ):
        open_networks("lib-x", TorchMethod(mark_square, marked_bits), edit.bundle, edit.backend, edit.layers)
