"""Metrics of pictures: best for equal ones, worse with more noise, and unavailable ones say why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("torch")

from kontext.bench.fidelity import picture_metrics
from kontext.bench.fidelity.picture_metrics import METRICS, Compare, Unavailable

BEST = {"psnr": 100, "ssim": 1, "ms_ssim": 1, "flip": 0, "ssimulacra2": 100, "lpips": 0, "clip": 1, "dino": 1}


def pictures(side: int = 128) -> list[PIL.Image.Image]:
    """A smooth picture, then the same with more and more noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    smooth = 128 + 90 * np.stack((np.sin(7 * x), np.cos(5 * y), np.sin(6 * x * y)), axis=2)
    noise = rng.standard_normal((side, side, 3))
    return [
        PIL.Image.fromarray((smooth + level * noise).clip(0, 255).astype(np.uint8)) for level in (0, 3, 20)
    ]


def made(name: str) -> Compare:
    try:
        return METRICS[name].make()
    except (Unavailable, ImportError) as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("name", METRICS)
def test_equal_pictures_are_best_and_noise_is_worse(name: str) -> None:
    compare = made(name)
    clean, little, much = pictures()
    values = [compare(picture, clean) for picture in (clean, little, much)]
    assert values[0] == pytest.approx(BEST[name], abs=1e-3)
    away = [abs(value - BEST[name]) for value in values]
    assert away[0] < away[1] < away[2]


@pytest.mark.parametrize(("side", "window"), [(1024, 11), (161, 11), (160, 9), (128, 7), (96, 5), (16, 1)])
def test_ms_ssim_has_a_window_at_any_size(side: int, window: int) -> None:
    assert picture_metrics.ms_ssim_window(side) == window
    clean, little, _ = pictures(side)
    assert 0 < made("ms_ssim")(little, clean) < 1


def test_weights_that_are_not_here_are_named_and_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants
    import torch

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found, absent = picture_metrics.available_metrics()
    assert {"psnr", "ssim"} <= set(found)
    assert set(found) | set(absent) == set(METRICS)
    assert absent["lpips"] == "alexnet-owt-7be5be79.pth is not in PyTorch's cache"
    assert absent["clip"] == "openai/clip-vit-base-patch32 is not in the hub's cache"
    assert absent["dino"] == "facebook/dinov2-base is not in the hub's cache"


def test_embeddings_are_compared_by_their_angle() -> None:
    clean, little, much = pictures(32)
    compare = picture_metrics.cosine(lambda pixels: pixels.flatten(1), 16, (0.5,) * 3, (0.25,) * 3)
    assert compare(clean, clean) == pytest.approx(1)
    assert compare(much, clean) < compare(little, clean) < 1
