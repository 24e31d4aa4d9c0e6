"""Bits per weight, against the formats' own arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench.fidelity import bits_per_weight
from kontext.runtime.bundle import Bundle


def test_int4_has_four_bits_a_scale_and_its_branch(bundles: dict[str, Path]) -> None:
    reference, bundle = Bundle.open(bundles["fp32"]), Bundle.open(bundles["int4"])
    layers = bits_per_weight.common_layers(reference, [bundle])
    shapes = {
        (graph, name): info.shape
        for graph, header in bits_per_weight.headers(reference).items()
        for name, info in header.tensors.items()
    }
    bits = count = 0
    for graph in bits_per_weight.COUNTED:
        for weight in layers[graph]:
            rows, columns = shapes[graph, weight]
            entry = bundle.manifest["precision"]["layers"][graph][weight]
            rank = entry.get("rank", 0) if isinstance(entry, dict) else 0
            bits += 4 * rows * columns + 32 * (rows // 64) * columns + 32 * rank * (rows + columns)
            count += rows * columns
    assert bits_per_weight.layer_bits(bundle, reference, layers) == pytest.approx(bits / count)
    assert bits_per_weight.layer_bits(reference, reference, layers) == 32


def test_files_count_everything(bundles: dict[str, Path]) -> None:
    reference, bundle = Bundle.open(bundles["fp32"]), Bundle.open(bundles["int8"])
    names = [f"weights/{graph}.safetensors" for graph in bits_per_weight.COUNTED]
    numbers = sum(
        math.prod(info.shape)
        for graph in bits_per_weight.COUNTED
        for info in bits_per_weight.headers(reference)[graph].tensors.values()
    )
    size = sum(bundle.manifest["files"][name]["size"] for name in names)
    assert bits_per_weight.file_bits(bundle, reference) == pytest.approx(8 * size / numbers)
    assert 32 <= bits_per_weight.file_bits(reference, reference) < 33  # type: ignore[operator]


def test_what_counts_as_quantized() -> None:
    assert bits_per_weight.is_quantized("int4")
    assert bits_per_weight.is_quantized({"format": "fp8", "rank": 16})
    assert not bits_per_weight.is_quantized("fp32")
    assert not bits_per_weight.is_quantized({"format": "bf16"})
