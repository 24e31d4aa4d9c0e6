"""How much of a right answer the autoencoder keeps: `python -m kontext.tiny.round_trip tiny/checkpoint`.

Perfect edits go through encoder and decoder and before the judge: no edit of the model can do better than this.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import KontextError
from ..model import Autoencoder
from ..model.checkpoint import load_state
from . import run_state
from .architecture import TINY
from .edits import KINDS, sample_edit
from .judge import judge
from .scenes import render
from .train_autoencoder import to_tensor

BATCH = 16


def to_pictures(images: Tensor) -> list[np.ndarray]:
    """float [batch, 3, H, W] in [-1, 1] → uint8 [H, W, 3] pictures, rounded as the pipeline does."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def round_trip(
    autoencoder: Autoencoder, kind: str, count: int, noise: float = 0.0, seed: int = 0
) -> tuple[int, float]:
    """(edits of `kind` from the test split whose right answer is still accepted, mean PSNR of those answers in dB).

    `noise` is added to the latents, as a share of their standard deviation: what the flow may miss.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    generator = torch.Generator().manual_seed(seed)
    edits = [sample_edit(rng, split="test", kind=kind) for _ in range(count)]
    accepted, decibels = 0, 0.0
    for start in range(0, count, BATCH):
        part = edits[start : start + BATCH]
        images = to_tensor([render(edit.target) for edit in part])
        latents = autoencoder.encoder(images)
        latents = latents + noise * latents.std() * torch.randn(latents.shape, generator=generator)
        output = autoencoder.decoder(latents)
        mean_square = (output.clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
        decibels += float((-10 * torch.log10(mean_square)).sum())
        answers = to_pictures(output)
        accepted += sum(judge(answer, edit).success for answer, edit in zip(answers, part, strict=True))
    return accepted, decibels / count


def autoencoder_of(checkpoint: Path) -> Autoencoder:
    """The autoencoder of a diffusers folder of the embedded model, or of a run's state (a .safetensors file)."""
    autoencoder = Autoencoder(TINY.autoencoder)  # the raw latents serve here, whatever normalizes them
    if checkpoint.suffix == ".safetensors":
        autoencoder.load_state_dict(run_state.load_average(checkpoint))
    else:
        weights = load_state(checkpoint)
        autoencoder.encoder.load_state_dict(weights["vae_encoder"])
        autoencoder.decoder.load_state_dict(weights["vae_decoder"])
    return autoencoder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kontext.tiny.round_trip", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="diffusers folder, or a run's autoencoder.safetensors")
    parser.add_argument("-n", "--count", type=int, default=100, help="edits of each kind")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="share of the latents' spread to add as noise"
    )
    args = parser.parse_args()
    try:
        autoencoder = autoencoder_of(args.checkpoint)
    except (KontextError, FileNotFoundError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    rows = {kind: round_trip(autoencoder, kind, args.count, args.noise) for kind in KINDS}
    for kind, (accepted, decibels) in rows.items():
        print(f"{kind:12} {accepted / args.count:4.0%}  {decibels:.1f} dB")
    accepted, decibels = (sum(column) for column in zip(*rows.values(), strict=True))
    print(f"{'all':12} {accepted / args.count / len(rows):4.0%}  {decibels / len(rows):.1f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
