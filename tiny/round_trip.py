"""How many correct answers survive the autoencoder: `python -P -m kontext.tiny.round_trip tiny/checkpoint`.

Perfect edits are encoded, decoded and judged. No edit of the model can do better than this.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..command import Parser, run_command
from ..decibels import decibels
from ..errors import KontextError
from ..model.autoencoder import Autoencoder
from ..model.checkpoint import load_state
from . import run_state
from .architecture import TINY
from .edits import KINDS, sample_edit
from .judge import judge
from .scenes import render
from .train_autoencoder import to_tensor

BATCH = 16


def to_pictures(images: Tensor) -> list[np.ndarray]:
    """float [batch, 3, H, W] in [-1, 1] → uint8 [H, W, 3] pictures, rounded as by the pipeline."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def judge_round_trips(
    autoencoder: Autoencoder, kind: str, count: int, noise: float = 0.0, seed: int = 0
) -> tuple[int, float]:
    """Encodes, decodes and judges the correct answers of `count` edits of `kind` from the test split.

    Args:
        noise: standard deviation of noise added to the latents, as a share of theirs: errors that the flow may make.

    Returns:
        The number of accepted answers, and their mean PSNR in dB.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    generator = torch.Generator().manual_seed(seed)
    edits = [sample_edit(rng, split="test", kind=kind) for _ in range(count)]
    accepted, total_psnr = 0, 0.0
    for start in range(0, count, BATCH):
        part = edits[start : start + BATCH]
        images = to_tensor([render(edit.target) for edit in part])
        latents = autoencoder.encoder(images)
        latents = latents + noise * latents.std() * torch.randn(latents.shape, generator=generator)
        output = autoencoder.decoder(latents)
        mean_square = (output.clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
        total_psnr += sum(decibels(1, each) for each in mean_square.tolist())
        answers = to_pictures(output)
        accepted += sum(judge(answer, edit).success for answer, edit in zip(answers, part, strict=True))
    return accepted, total_psnr / count


def load_autoencoder(checkpoint: Path) -> Autoencoder:
    """The autoencoder of a diffusers folder of the embedded model, or of a run's autoencoder.safetensors."""
    autoencoder = Autoencoder(TINY.autoencoder)  # latents are not normalized here, which makes no difference
    if checkpoint.suffix == ".safetensors":
        if not checkpoint.exists():
            raise KontextError(f"{checkpoint} does not exist")
        autoencoder.load_state_dict(run_state.load_average(checkpoint))
    else:
        weights = load_state(checkpoint)
        autoencoder.encoder.load_state_dict(weights["vae_encoder"])
        autoencoder.decoder.load_state_dict(weights["vae_decoder"])
    return autoencoder


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: measure_round_trip(arguments))


def measure_round_trip(arguments: list[str] | None) -> None:
    parser = Parser(prog="python -P -m kontext.tiny.round_trip", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="diffusers folder, or a run's autoencoder.safetensors")
    parser.add_argument("-n", "--count", type=int, default=100, help="edits of each kind")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="noise on the latents, as a share of their standard deviation",
    )
    options = parser.parse_args(arguments)
    autoencoder = load_autoencoder(options.checkpoint)
    rows = {kind: judge_round_trips(autoencoder, kind, options.count, options.noise) for kind in KINDS}
    for kind, (accepted, psnr) in rows.items():
        print(f"{kind:12} {accepted / options.count:4.0%}  {psnr:.1f} dB")
    accepted, psnr = (sum(column) for column in zip(*rows.values(), strict=True))
    print(f"{'all':12} {accepted / options.count / len(rows):4.0%}  {psnr / len(rows):.1f} dB")


if __name__ == "__main__":
    sys.exit(main())
