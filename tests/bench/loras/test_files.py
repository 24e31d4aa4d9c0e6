"""Synthetic LoRAs: two halves do what the whole does, and the size is the wanted one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kontext.bench.loras.files import rank_of_size, write_loras
from kontext.runtime.lora import Lora, read_loras
from kontext.runtime.lora_slots import LoraSlots

SLOTS = LoraSlots(8, {"transformer": (300, 500), "modulation": (100, 200)}, "a layout")


def test_halves_do_what_the_whole_does(tmp_path: Path) -> None:
    names = [tmp_path / f"{name}.safetensors" for name in ("whole", "a", "b")]
    write_loras(names[:1], SLOTS, 6)
    write_loras(names[1:], SLOTS, 6)
    whole, halves = (
        read_loras(SLOTS, [(Lora.open(path, SLOTS), 1.0) for path in paths])[0]["transformer"]
        for paths in (names[:1], names[1:])
    )
    assert whole["lora_up"].shape == halves["lora_up"].shape == (500, 6)
    product, sum_of_both = (each["lora_down"] @ each["lora_up"].T for each in (whole, halves))
    np.testing.assert_allclose(product, sum_of_both, atol=1e-6)


@pytest.mark.parametrize("size", [1, 10**5, 10**7])
def test_the_rank_that_fills_a_file(size: int, tmp_path: Path) -> None:
    rank = rank_of_size(SLOTS, size)
    write_loras([tmp_path / "large.safetensors"], SLOTS, rank)
    assert (tmp_path / "large.safetensors").stat().st_size == pytest.approx(max(size, 4 * 1100), rel=0.1)
