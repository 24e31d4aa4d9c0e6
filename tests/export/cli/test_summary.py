"""The summary's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.export.cli.summary import human, peak_memory, render_summary
from kontext.export.exporter import Summary
from kontext.model.networks import NETWORKS
from kontext.quant.recipe import choose_recipe


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (24_000_000, "24.0 MB"), (23.8e9, "23.80 GB")],
)
def test_human(size: float, text: str) -> None:
    assert human(size) == text


def test_peak_memory_is_plausible() -> None:
    assert 10e6 < peak_memory() < 1e12


def test_what_is_said_of_a_mixed_resumed_export() -> None:
    summary = Summary(
        output=Path("/somewhere/out"),
        name="FLUX.1-Kontext-dev",
        parameters=16_900_000_000,
        recipe=choose_recipe(tuple(NETWORKS), 16_900_000_000, "fp16", "fp8"),
        sizes={"weights/transformer.safetensors": 9_000_000_000, "transformer.onnx": 1_000},
        seconds={"all": 100.0, "weights": 60.0, "graphs": 39.0},
        resumed=["weights/modulation.safetensors"],
    )
    text = render_summary(summary)
    for part in (
        "16,900.0 M parameters, fp8 weights, fp16 compute",
        "text_encoder_2 computes in bf16",
        "9.00 GB",
        "from an earlier, unfinished export: weights/modulation.safetensors",
        "100.0 s (weights 60.0 s, graphs 39.0 s)",
        "kontext-edit /somewhere/out",
    ):
        assert part in text
