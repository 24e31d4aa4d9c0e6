"""Correct answers through an autoencoder, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kontext.tiny import round_trip  # noqa: E402
from kontext.tiny.train_autoencoder import to_tensor  # noqa: E402


class Lossless:
    """The picture itself as its latents."""

    def encoder(self, images: Any) -> Any:
        return images

    def decoder(self, latents: Any) -> Any:
        return latents


class Grey(Lossless):
    def decoder(self, latents: Any) -> Any:
        return torch.zeros_like(latents)


def test_pictures_come_back_from_tensors_as_they_were() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    images = to_tensor([picture])
    assert images.is_contiguous()
    assert np.array_equal(round_trip.to_pictures(images)[0], picture)


def test_a_lossless_round_trip_is_accepted_and_a_grey_one_refused() -> None:
    lossless: Any = Lossless()
    accepted, psnr = round_trip.judge_round_trips(lossless, "recolour", 3)
    assert accepted == 3
    assert psnr > 100
    grey: Any = Grey()
    assert round_trip.judge_round_trips(grey, "recolour", 3)[0] == 0


def test_noise_on_the_latents_shows_in_the_decibels() -> None:
    lossless: Any = Lossless()
    _, psnr = round_trip.judge_round_trips(lossless, "move", 2, noise=0.1)
    assert 15 < psnr < 45


def test_a_missing_checkpoint_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        [str(tmp_path / "none")],
        [str(tmp_path / "none.safetensors")],
        ["x", "--noises", "1", "-q"],
    ):
        assert round_trip.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
