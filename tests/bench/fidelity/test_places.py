"""Places: within a class, at no more bits, shared by those that differ by chance."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("scipy")

from kontext.bench.fidelity.places import rank

HARD = [30.0, 33.0, 41.0, 46.0, 50.0, 37.0]


def entry(scheme: str, bits: float | None, better: float, jitter: float = 0.01) -> dict[str, Any]:
    """`better` than others by so many dB in every edit, but for a `jitter` of alternating sign."""
    psnr = [each + better + jitter * (-1) ** n for n, each in enumerate(HARD)]
    noise = [10 ** (-each / 10) for each in psnr]
    return {"scheme": scheme, "bits_per_weight": bits, "psnr_each": psnr, "noise_each": noise}


def test_places_at_no_more_bits() -> None:
    entries = {
        "best": entry("W4A16", 5.0, 3),
        "ours": entry("W4A16", 4.5, 2),
        "twin": entry("W4A16", 4.5, 2.001, jitter=0.5),
        "small": entry("W4A16", 4.13, 0),
        "worse": entry("W4A16", 4.5, 0.5),
        "eight": entry("W8A16", 8.1, 20),
        "plain": entry("not quantized", None, 50),
    }
    rank(entries)
    assert {name: each["places"]["psnr"] for name, each in entries.items() if "places" in each} == {
        "best": "1",
        "ours": "1=",
        "twin": "1=",
        "small": "1",
        "worse": "3",
        "eight": "1",
    }
    assert [name for name, each in entries.items() if "psnr" in each.get("best", [])] == ["best", "eight"]
    assert entries["ours"]["places"]["velocity_snr"] == "1="
    assert "places" not in entries["plain"]
