"""What is said of blocks that are too small for E4M3 scales."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.quantize import quantize_weight  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402
from kontext.quant.statistics import InputStatistics  # noqa: E402
from kontext.quant.underflow import underflow_notes  # noqa: E402


def notes(layer: Layer, weight: torch.Tensor, inputs: torch.Tensor) -> list[str]:
    statistics = InputStatistics.empty(32)
    statistics.add(inputs, 0)
    stored = quantize_weight(weight, layer, torch.float32, statistics)
    return list(underflow_notes(layer, weight, stored, statistics))


def test_ordinary_weights_and_inputs_lose_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(*shape, generator=generator) for shape in ((32, 16), (64, 32)))
    weight[:16], inputs[:, :16] = 0, 0  # zeros are kept
    for layer in (Layer("nvfp4"), Layer("nvfp4", 0, "nvfp4", True), Layer("int4", 0), Layer("fp8", 0, "fp8")):
        if layer.format != "int4":  # in groups of 64
            assert notes(layer, weight, inputs) == []


def test_what_is_too_small_is_counted() -> None:
    weight, inputs = torch.ones(32, 16), torch.ones(64, 32)
    weight[:16, :3] = 1e-7
    inputs[:, :16] = 1e-6
    found = notes(Layer("nvfp4", 0, "nvfp4"), weight, inputs)
    assert [note.split(" are ")[0] for note in found] == [
        "3 of 32 blocks of weights",
        "1 of 2 blocks of its inputs",
    ]
    assert len(notes(Layer("nvfp4"), weight, inputs)) == 1
