"""What calibration remembers, against the same figures of all inputs at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.quant.statistics import (  # noqa: E402
    FINENESS,
    OCTAVES,
    InputStatistics,
    Statistics,
    bin_edge,
    block_size,
)


def inputs(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def collected(parts: list[tuple[torch.Tensor, int]]) -> InputStatistics:
    statistics = InputStatistics.empty(parts[0][0].shape[-1])
    for values, part in parts:
        statistics.add(values, part)
    return statistics


def test_they_are_those_of_all_inputs() -> None:
    early, late = inputs(70, 96), 3 * inputs(50, 96, 1)
    statistics = collected([(early[:30], 0), (early[30:].view(2, 20, 96), 0), (late, 3)])
    everything = torch.cat((early, late))
    assert statistics.rows == 120
    assert torch.equal(statistics.largest[0], early.abs().amax(0))
    assert torch.equal(statistics.largest[3], late.abs().amax(0))
    assert statistics.amax() == float(everything.abs().max())
    assert statistics.moments is not None
    assert torch.allclose(statistics.moments[0], everything.t() @ everything, rtol=1e-4, atol=1e-2)
    assert float(statistics.histogram.sum()) == everything.numel()
    centre = everything.mean(0) + 0.5
    assert torch.allclose(statistics.mean(), everything.mean(0), atol=1e-5)
    assert torch.allclose(statistics.mean_square(), everything.square().mean(0), rtol=1e-5)
    about = (everything - centre).t() @ (everything - centre)
    assert torch.allclose(statistics.moments_about(centre)[0], about, rtol=1e-4, atol=5e-2)
    assert torch.allclose(statistics.reach(centre), (everything - centre).abs().amax(0).maximum(centre.abs()))
    assert statistics.spread() == pytest.approx(float(late.abs().max() / early.abs().max()))


def test_percentiles_are_right_to_a_bin() -> None:
    values = inputs(4000, 16)
    statistics = collected([(values, 0)])
    for share in (0.5, 0.9, 0.999):
        exact = float(torch.quantile(values.abs().flatten(), share))
        assert exact <= statistics.percentile(share) <= exact * 2 ** (1 / 8) * 1.03
    assert statistics.percentile(1.0) == statistics.amax()


def test_zeros_are_the_smallest_values() -> None:
    """GELU makes many of them: they must not stand above small values."""
    values = torch.cat((torch.zeros(50, 1), torch.full((49, 1), 0.01), torch.tensor([[0.1]])))
    statistics = collected([(values, 0)])
    assert statistics.percentile(0.5) <= 2**-23
    assert 0.01 <= statistics.percentile(0.99) <= 0.01 * 2 ** (1 / 8) * 1.03


def test_bins_are_eighths_of_octaves() -> None:
    statistics = InputStatistics.empty(1)
    last = 2.0**24 * (1 - 2.0**-4)  # 24 octaves below 1 and as many above it, of 8 bins each
    for value, lowest in (
        (1.0, 1.0),
        (-1.124, 1.0),
        (1.125, 1.125),
        (2.0, 2.0),
        (2.0**-24, 2.0**-24),
        (1e-30, 2.0**-24),
        (0.0, 2.0**-24),
        (2.0**24 - 1, last),
        (1e30, last),
    ):
        before = statistics.histogram.clone()
        statistics.add(torch.tensor([[value]]), 0)
        (index,) = (statistics.histogram - before).nonzero().flatten().tolist()
        assert bin_edge(index) == lowest, value
    assert statistics.amax() == pytest.approx(1e30)


def test_large_layers_keep_blocks() -> None:
    assert block_size(192) == 192
    assert block_size(12288) == 1024
    assert block_size(3072 + 192) == 816
    assert block_size(2050) == 410  # and not 1025
    assert InputStatistics.empty(4096).moments is not None
    bare = InputStatistics.empty(4096, moments=False)
    assert bare.moments is None
    with pytest.raises(ValueError, match="no moments were kept"):
        bare.moments_about(torch.zeros(4096))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_a_fault(value: float) -> None:
    broken = inputs(3, 8)
    broken[1, 2] = value
    with pytest.raises(KontextError, match="NaN or infinity"):
        InputStatistics.empty(8).add(broken, 0)


def test_nothing_is_nothing() -> None:
    statistics = InputStatistics.empty(8)
    statistics.add(torch.empty(0, 8), 0)
    assert (statistics.rows, statistics.amax(), statistics.spread()) == (0, 0.0, 1.0)


def test_they_are_kept_as_safetensors(tmp_path: Path) -> None:
    layers = {
        "b.weight": collected([(inputs(5, 8), 1)]),
        "without moments": InputStatistics.empty(8, moments=False),
    }
    statistics = Statistics({"a": layers}, {"count": 3})
    statistics.save(tmp_path / "s.safetensors")
    again = Statistics.load(tmp_path / "s.safetensors")
    ours, theirs = statistics.get("a", "b.weight"), again.get("a", "b.weight")
    assert ours is not None
    assert theirs is not None
    for field in ("lowest", "highest", "sums", "histogram", "moments"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
    assert (theirs.width, theirs.rows, again.about) == (8, 5, {"count": 3})
    without = again.get("a", "without moments")
    assert without is not None
    assert without.moments is None
    assert again.get("a", "c") is None


@pytest.mark.parametrize("content", [b"", b"rubbish" * 9])
def test_anything_else_is_no_calibration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(KontextError, match="is no calibration"):
        Statistics.load(tmp_path / "s")


def test_the_histogram_has_every_size_in_its_bin() -> None:
    """numpy's frexp and every power of two as the oracle, subnormal and huge numbers among the values."""
    random = np.random.default_rng(0)
    values = np.concatenate((
        np.ldexp(random.uniform(1, 2, 2000), random.integers(-40, 40, 2000)),
        np.ldexp(1.0, np.arange(-149, 128)),
        [0.0, -0.0, 1e-45, 3e38],
    )).astype(np.float32)  # fmt: skip
    values[::2] *= -1
    mantissa, exponent = np.frexp(np.abs(values).astype(np.float64))
    bins = (exponent - 1 + OCTAVES // 2) * FINENESS + np.floor((2 * mantissa - 1) * FINENESS).astype(int)
    bins = np.where(values == 0, 0, bins).clip(0, OCTAVES * FINENESS - 1)
    statistics = InputStatistics.empty(1, moments=False)
    statistics.add(torch.from_numpy(values)[:, None], 0)
    assert statistics.histogram.tolist() == np.bincount(bins, minlength=OCTAVES * FINENESS).tolist()
