"""How unlike two pictures are, by measures that other people wrote; whichever of them is installed.

PSNR and SSIM are always there. MS-SSIM, FLIP and SSIMULACRA2 come with the `bench` extra. LPIPS, CLIP and DINO need
weights that are only taken from this machine's caches, never fetched.
"""

from __future__ import annotations

import io
from collections.abc import Callable
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
"""The file of torchvision's weights that LPIPS looks through."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Absent(Exception):
    """A measure cannot be taken here; says why."""


@dataclass(frozen=True)
class Measure:
    """`label` heads its column, `digits` are shown after the point."""

    label: str
    digits: int
    make: Callable[[], Compare]


def make_ssim() -> Compare:
    """Structural similarity (Wang et al. 2004), by scikit-image."""
    from skimage.metrics import structural_similarity

    return lambda ours, theirs: float(
        structural_similarity(np.asarray(ours), np.asarray(theirs), channel_axis=2, data_range=255)
    )


def make_ms_ssim() -> Compare:
    """MS-SSIM (Wang et al. 2003) with its five scales, by pytorch-msssim."""
    from pytorch_msssim import ms_ssim

    def compare(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
        pair = (tensor(ours) * 255, tensor(theirs) * 255)
        return float(ms_ssim(*pair, data_range=255, win_size=ms_ssim_window(min(ours.size))))

    return compare


def ms_ssim_window(side: int) -> int:
    """The usual window of 11 where its fifth scale still has one, from 161 pixels on; below, the largest odd one: 7 at
    128."""
    return max(window for window in (11, 9, 7, 5, 3, 1) if window == 1 or side > 16 * (window - 1))


def make_flip() -> Compare:
    """Mean of the FLIP error map (Andersson et al. 2020) at its default 67 pixels a degree; 0 is alike, 1 the worst."""
    import flip_evaluator

    def compare(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
        pair = [np.asarray(picture, np.float32) / 255 for picture in (theirs, ours)]
        return float(flip_evaluator.evaluate(*pair, "LDR", applyMagma=False)[1])

    return compare


def make_ssimulacra2() -> Compare:
    """SSIMULACRA2 (Sneyers 2023): 100 is alike, 90 cannot be told apart, below 0 is bad."""
    from ssimulacra2 import compute_ssimulacra2

    return lambda ours, theirs: float(compute_ssimulacra2(png(theirs), png(ours)))


def make_lpips() -> Compare:
    """LPIPS (Zhang et al. 2018) on AlexNet; 0 is alike."""
    import os

    import torch

    file = os.path.join(torch.hub.get_dir(), "checkpoints", ALEXNET)
    if not os.path.isfile(file):
        raise Absent(f"{ALEXNET} is not in PyTorch's cache")
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).eval()

    def compare(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> float:
        with torch.inference_mode():
            return float(network(tensor(ours) * 2 - 1, tensor(theirs) * 2 - 1))

    return compare


def make_clip() -> Compare:
    """Cosine of the two pictures' CLIP embeddings."""
    check_cached(CLIP_MODEL)
    from transformers import CLIPVisionModelWithProjection

    model = local(CLIPVisionModelWithProjection, CLIP_MODEL)
    side = model.config.image_size
    return cosine(lambda pixels: model(pixels).image_embeds, side, CLIP_MEAN, CLIP_STD)


def make_dino() -> Compare:
    """Cosine of the two pictures' DINOv2 class tokens."""
    check_cached(DINO_MODEL)
    from transformers import Dinov2Model

    model = local(Dinov2Model, DINO_MODEL)
    side = 16 * model.config.patch_size
    return cosine(lambda pixels: model(pixels).pooler_output, side, IMAGENET_MEAN, IMAGENET_STD)


MEASURES = {
    "psnr": Measure("PSNR [dB]", 1, lambda: psnr),
    "ssim": Measure("SSIM", 4, make_ssim),
    "ms_ssim": Measure("MS-SSIM", 4, make_ms_ssim),
    "flip": Measure("FLIP", 4, make_flip),
    "ssimulacra2": Measure("SSIMULACRA2", 1, make_ssimulacra2),
    "lpips": Measure("LPIPS", 4, make_lpips),
    "clip": Measure("CLIP", 4, make_clip),
    "dino": Measure("DINO", 4, make_dino),
}
"""In the order of the columns."""


def available() -> tuple[dict[str, Compare], dict[str, str]]:
    """The measures that can be taken here, and why the others cannot."""
    found: dict[str, Compare] = {}
    absent: dict[str, str] = {}
    for name, measure in MEASURES.items():
        try:
            found[name] = measure.make()
        except Absent as reason:
            absent[name] = str(reason)
        except ImportError as fault:
            absent[name] = f"{fault.name or 'its package'} is not installed"
    return found, absent


def check_cached(name: str) -> None:
    """Raises Absent where a model is not in the hub's cache; before its library is loaded, which takes seconds."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise Absent(f"{name} is not in the hub's cache")


def local(kind: Any, name: str) -> Any:
    """A model out of the hub's cache. Raises Absent where it is not whole there."""
    try:
        return kind.from_pretrained(name, local_files_only=True).eval()
    except (OSError, ValueError):
        raise Absent(f"{name} is not whole in the hub's cache") from None


def cosine(
    embed: Callable[[Any], Any], side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Compare:
    """Compares embeddings of pictures at `side` x `side`, normalized by `mean` and `std`."""
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
