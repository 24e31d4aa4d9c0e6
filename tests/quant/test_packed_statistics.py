"""Packed statistics: everything but the moments comes back as it was, and the moments are good enough to round with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.formats import FORMATS  # noqa: E402
from kontext.quant.gptq import inverse_factor, round_with_feedback  # noqa: E402
from kontext.quant.packed_statistics import load_packed, pack_moments, save_packed, unpack_moments  # noqa: E402
from kontext.quant.statistics import InputStatistics, Statistics  # noqa: E402


def correlated(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs whose channels have other scales and means, and depend on each other, as those of a GELU."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, width // 2, generator=generator) @ torch.randn(
        width // 2, width, generator=generator
    )
    return torch.nn.functional.gelu(mixed / 6) * torch.logspace(-2, 1, width) + 0.3


def collected(inputs: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics.empty(inputs.shape[1])
    statistics.add(inputs, 0)
    return statistics


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    first, operand = collected(correlated(500, 96)), InputStatistics.empty(8, moments=False)
    operand.add(correlated(50, 8), 2)
    other = collected(correlated(400, 40, 1))
    layers = {"q": first, "k": collected(correlated(500, 96)), "o": other, "attention.q": operand}
    saved = Statistics({"transformer": layers, "modulation": {}}, {"samples": "noise"})
    save_packed(saved, tmp_path / "a.safetensors", {"digest": "x"})
    loaded = load_packed(tmp_path / "a.safetensors")
    assert (loaded.about, loaded.file) == (saved.about, tmp_path / "a.safetensors")
    found = loaded.inputs["transformer"]
    assert set(found) == set(layers)
    for name, each in layers.items():
        ours = found[name]
        assert (ours.rows, ours.width) == (each.rows, each.width)
        for part in ("lowest", "highest", "sums", "histogram"):
            assert torch.equal(getattr(ours, part), getattr(each, part))
    assert found["attention.q"].moments is None
    assert found["q"] is found["k"]  # once in the file
    moments = first.moments
    assert moments is not None
    assert found["q"].moments is not None
    assert float((found["q"].moments - moments).norm() / moments.norm()) < 1e-2
    plain = tmp_path / "plain.safetensors"
    saved.save(plain)
    assert (tmp_path / "a.safetensors").stat().st_size < plain.stat().st_size / 2


@pytest.mark.parametrize("name", ["fp8", "int8", "int4"])
def test_rounding_with_them_is_as_good(name: str) -> None:
    """Errors of a layer's outputs, by numpy's own arithmetic on the inputs: rounded to nearest, and with feedback."""
    inputs = correlated(3000, 128)
    centred = inputs - inputs.mean(0)
    exact = collected(inputs).moments_about(inputs.mean(0))
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(2)) / 10
    format = FORMATS[name]
    scales = format.scales(weight, torch.float32)
    steps, offsets = format.step(*scales), format.offset(*scales)
    noise = []
    for moments in (torch.eye(128)[None], exact, unpack_moments(*pack_moments(exact))):
        units = round_with_feedback(weight, moments, steps, format.nearest, offsets)
        restored = format.dequantize(format.pack(units, *scales), *scales).float()
        error = centred.double().numpy() @ (restored - weight).double().numpy()
        noise.append(10 * math.log10(float((error**2).mean())))
    nearest, with_exact, with_packed = noise
    assert with_exact < nearest - 1
    assert with_packed == pytest.approx(with_exact, abs=0.2)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_moments_of_few_inputs(rows: int) -> None:
    """They are singular, or 0; what is unpacked can be factored all the same."""
    statistics = InputStatistics.empty(24)
    statistics.add(correlated(5, 24)[:rows], 0)
    moments = statistics.moments_about(statistics.mean())
    unpacked = unpack_moments(*pack_moments(moments))
    assert statistics.moments is not None
    assert float((unpacked - moments).abs().max()) <= 2e-2 * max(float(statistics.moments.max()), 1e-9)
    inverse_factor(unpacked[0])


def test_several_blocks() -> None:
    moments = torch.stack(
        [collected(correlated(200, 16, seed)).moments_about(torch.zeros(16))[0] for seed in (3, 4)]
    )
    diagonal, largest, codes = pack_moments(moments)
    assert (diagonal.shape, largest.shape, codes.shape, codes.dtype) == (
        (2, 16),
        (2, 16),
        (2, 120),
        torch.int8,
    )
    for block, packed in zip(moments, unpack_moments(diagonal, largest, codes), strict=True):
        assert float((packed - block).norm() / block.norm()) < 2e-2
