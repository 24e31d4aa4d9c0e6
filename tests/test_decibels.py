"""Decibels by hand, and where they end."""

from __future__ import annotations

import math

import PIL.Image
import pytest

from kontext.decibels import decibels, psnr


def plain(level: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (8, 8), (level,) * 3)


def test_decibels() -> None:
    assert decibels(100, 1) == 20
    assert decibels(1, 0) == decibels(1, 1e-30) == 200


def test_psnr() -> None:
    assert psnr(plain(16), plain(0)) == pytest.approx(20 * math.log10(255 / 16))
    assert psnr(plain(0), plain(255)) == 0
    assert psnr(plain(7), plain(7)) == 100
