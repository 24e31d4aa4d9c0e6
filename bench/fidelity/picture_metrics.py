"""Metrics of how much two pictures differ, by their own implementations, as far as they are installed.

PSNR is always available. SSIM, MS-SSIM, FLIP and SSIMULACRA2 come with the `bench` extra. LPIPS, CLIP and DINO need
weights, which are taken from this machine's caches and never downloaded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from ...decibels import psnr

Compare = Callable[[PIL.Image.Image, PIL.Image.Image], float]
"""(picture, reference) → one number."""

CLIP_MODEL = "openai/clip-vit-base-patch32"
DINO_MODEL = "facebook/dinov2-base"
ALEXNET = "alexnet-owt-7be5be79.pth"
"""The file of torchvision's weights that LPIPS uses."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Unavailable(Exception):
    """A metric cannot be computed here; the message says why."""


@dataclass(frozen=True)
class Metric:
    """`label` is its column's header; `digits` are shown after the decimal point."""

    label: str
    digits: int
    make: Callable[[], Compare]


def make_ssim() -> Compare:
    """SSIM (Wang et al. 2004), by scikit-image."""
    from skimage.metrics import structural_similarity

    return lambda ours, theirs: float(
        structural_similarity(np.asarray(ours), np.asarray(theirs), channel_axis=2, data_range=255)
    )


def make_ms_ssim() -> Compare:
    """MS-SSIM (Wang et al. 2003) with five scales, by pytorch-msssim."""
    from pytorch_msssim import ms_ssim

    def compare(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
        pair = (tensor(ours) * 255, tensor(theirs) * 255)
        return float(ms_ssim(*pair, data_range=255, win_size=ms_ssim_window(min(ours.size))))

    return compare


def ms_ssim_window(side: int) -> int:
    """The usual window of 11 from 161 pixels on, where it fits the fifth scale; below, the largest odd one that fits: 7
    at 128."""
    return max(window for window in (11, 9, 7, 5, 3, 1) if window == 1 or side > 16 * (window - 1))


def make_flip() -> Compare:
    """Mean of the FLIP error map (Andersson et al. 2020) at its default 67 pixels per degree: 0 equal, 1 worst."""
    import flip_evaluator

    def compare(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
        pair = [np.asarray(picture, np.float32) / 255 for picture in (theirs, ours)]
        return float(flip_evaluator.evaluate(*pair, "LDR", applyMagma=False)[1])

    return compare


def make_ssimulacra2() -> Compare:
    """SSIMULACRA2 (Sneyers 2023): 100 equal, 90 indistinguishable, below 0 bad."""
    from ssimulacra2 import compute_ssimulacra2

    return lambda ours, theirs: float(compute_ssimulacra2(png(theirs), png(ours)))


def make_lpips() -> Compare:
    """LPIPS (Zhang et al. 2018) on AlexNet: 0 equal."""
    import os

    import torch

    file = os.path.join(torch.hub.get_dir(), "checkpoints", ALEXNET)
    if not os.path.isfile(file):
        raise Unavailable(f"{ALEXNET} is not in PyTorch's cache")
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).eval()

    def compare(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
        with torch.inference_mode():
            return float(network(tensor(ours) * 2 - 1, tensor(theirs) * 2 - 1))

    return compare


def make_clip() -> Compare:
    """Cosine similarity of the pictures' CLIP embeddings."""
    check_cached(CLIP_MODEL)
    from transformers import CLIPVisionModelWithProjection

    model = local(CLIPVisionModelWithProjection, CLIP_MODEL)
    side = model.config.image_size
    return cosine(lambda pixels: model(pixels).image_embeds, side, CLIP_MEAN, CLIP_STD)


def make_dino() -> Compare:
    """Cosine similarity of the pictures' DINOv2 class tokens."""
    check_cached(DINO_MODEL)
    from transformers import Dinov2Model

    model = local(Dinov2Model, DINO_MODEL)
    side = 16 * model.config.patch_size
    return cosine(lambda pixels: model(pixels).pooler_output, side, IMAGENET_MEAN, IMAGENET_STD)


METRICS = {
    "psnr": Metric("PSNR [dB]", 1, lambda: psnr),
    "ssim": Metric("SSIM", 4, make_ssim),
    "ms_ssim": Metric("MS-SSIM", 4, make_ms_ssim),
    "flip": Metric("FLIP", 4, make_flip),
    "ssimulacra2": Metric("SSIMULACRA2", 1, make_ssimulacra2),
    "lpips": Metric("LPIPS", 4, make_lpips),
    "clip": Metric("CLIP", 4, make_clip),
    "dino": Metric("DINO", 4, make_dino),
}
"""Name → metric, in the order of the columns."""


def available_metrics(names: Iterable[str] | None = None) -> tuple[dict[str, Compare], dict[str, str]]:
    """The metrics that can be computed here, and for the others why not: of those named, or of all."""
    found: dict[str, Compare] = {}
    absent: dict[str, str] = {}
    for name in METRICS if names is None else names:
        try:
            found[name] = METRICS[name].make()
        except Unavailable as reason:
            absent[name] = str(reason)
        except ImportError as fault:
            absent[name] = f"{fault.name or 'its package'} is not installed"
    return found, absent


def check_cached(name: str) -> None:
    """Raises Unavailable if a model is not in the hub's cache; importing a library first would take seconds."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise Unavailable(f"{name} is not in the hub's cache")


def local(kind: Any, name: str) -> Any:
    """A model from the hub's cache. Raises Unavailable if it is incomplete there."""
    try:
        return kind.from_pretrained(name, local_files_only=True).eval()
    except (OSError, ValueError):
        raise Unavailable(f"{name} is incomplete in the hub's cache") from None


def cosine(
    embed: Callable[[Any], Any], side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Compare:
    """Cosine similarity of embeddings of pictures resized to `side` × `side` and normalized by `mean` and `std`."""
    import torch

    def pixels(picture: PIL.Image.Image) -> Any:
        sized = tensor(picture.resize((side, side), PIL.Image.Resampling.BICUBIC))
        return (sized - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    def compare(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
        with torch.inference_mode():
            pair = [embed(pixels(picture)) for picture in (ours, theirs)]
            return float(torch.nn.functional.cosine_similarity(*pair))

    return compare


def tensor(picture: PIL.Image.Image) -> Any:
    """fp32 [1, 3, height, width] in [0, 1]."""
    import torch

    return torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)[None] / 255


def png(picture: PIL.Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, "PNG")
    file.seek(0)
    return file
