"""Trains the embedded model: `python -m kontext.tiny.train --run runs/tiny`, from nothing or from a checkpoint.

Stages run in order, each for its share of time, and each goes on where it was stopped (Ctrl-C is safe). A finished run
is written as a diffusers folder with `--checkpoint FOLDER`, from the last stages that there are.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from ..errors import KontextError
from ..model import Autoencoder, AutoencoderConfig, KontextConfig
from . import run_state
from .architecture import TINY
from .distill import distill, load_network
from .edits import all_prompts_corpus
from .pool import normalization
from .train_autoencoder import draw, train_autoencoder, train_decoder
from .train_flow import train_flow
from .vocabulary import train_clip, train_t5
from .warm_start import start_from

NETWORK_STAGES = ("flow", "guidance", "fewstep")
STAGES = ("autoencoder", *NETWORK_STAGES, "decoder")
MINUTES = {"autoencoder": 45.0, "flow": 100.0, "guidance": 10.0, "fewstep": 15.0, "decoder": 12.0}
"""Shares of about three hours on two idle cores; time on slower or busy ones buys fewer steps, not a broken model."""


def tokenizers(run: Path) -> None:
    """Trains both tokenizers on the instructions, once."""
    if (run / "tokenizer_2" / "tokenizer.json").exists():
        return
    corpus = list(all_prompts_corpus())
    clip, t5 = TINY.text_encoder, TINY.text_encoder_2
    train_clip(corpus, clip.vocab_size, clip.max_length, run / "tokenizer")
    train_t5(corpus, t5.vocab_size, t5.max_length, run / "tokenizer_2")


def trained_autoencoder(config: AutoencoderConfig, run: Path) -> Autoencoder:
    """The autoencoder of stage 1, its configuration normalizing the latents that it really makes."""
    weights = run_state.load_average(run / "autoencoder.safetensors")
    model = Autoencoder(config)
    model.load_state_dict(weights)
    shift, scale = normalization(model, draw(np.random.default_rng(0), 256))
    fitted = dataclasses.replace(config, shift_factor=round(shift, 4), scaling_factor=round(scale, 4))
    model = Autoencoder(fitted).requires_grad_(False)
    model.load_state_dict(weights)
    return model


def write_checkpoint(run: Path, folder: Path, stage: str | None = None) -> None:
    """Writes the averaged weights, in bf16, as a diffusers folder.

    The network's are those of `stage`, one of NETWORK_STAGES (default: the last that there is), the decoder's those of
    its own stage where that was trained.
    """
    import shutil

    from ..model.diffusers_folder import save_diffusers

    stage = stage or [name for name in NETWORK_STAGES if (run / f"{name}.safetensors").exists()][-1]
    autoencoder = trained_autoencoder(TINY.autoencoder, run)
    if (run / "decoder.safetensors").exists():
        autoencoder.decoder.load_state_dict(run_state.load_average(run / "decoder.safetensors"))
    config = dataclasses.replace(TINY, autoencoder=autoencoder.config)
    network = load_network(config, run / f"{stage}.safetensors", "cpu")
    parts = {
        "transformer": network.transformer,
        "modulation": network.modulation,
        "text_encoder": network.text_encoder,
        "text_encoder_2": network.text_encoder_2,
        "vae_encoder": autoencoder.encoder,
        "vae_decoder": autoencoder.decoder,
    }
    weights = {
        name: {key: t.bfloat16() for key, t in part.state_dict().items()} for name, part in parts.items()
    }
    save_diffusers(folder, config, weights)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(run / name, folder / name, dirs_exist_ok=True)
    print(f"wrote {stage!r} to {folder}")


def train(
    run: Path, stages: list[str], minutes: dict[str, float], device: str, compiled: bool = False
) -> None:
    run.mkdir(parents=True, exist_ok=True)
    tokenizers(run)
    if "autoencoder" in stages:
        train_autoencoder(TINY.autoencoder, run, minutes["autoencoder"], device)
    autoencoder = trained_autoencoder(TINY.autoencoder, run)
    config: KontextConfig = dataclasses.replace(TINY, autoencoder=autoencoder.config)
    encoder = autoencoder.encoder.to(device)
    if "flow" in stages:
        train_flow(config, encoder, run, minutes["flow"], device, compiled)
    for stage, teacher in (("guidance", "flow"), ("fewstep", "guidance")):
        if stage in stages:
            state = run / f"{teacher}.safetensors"
            distill(stage, state, config, encoder, run, minutes[stage], device, compiled)
    if "decoder" in stages:
        train_decoder(autoencoder, run, minutes["decoder"], device)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kontext.tiny.train", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="folder of the training state")
    parser.add_argument("--stages", default=",".join(STAGES), help="which stages to run, in order")
    for stage in STAGES:
        parser.add_argument(f"--{stage}-minutes", type=float, default=MINUTES[stage])
    parser.add_argument(
        "--from", dest="start", type=Path, help="checkpoint whose weights a new run starts from"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the transformer (needs a C++ compiler)"
    )
    parser.add_argument("--checkpoint", type=Path, help="only write the run as a diffusers folder")
    parser.add_argument(
        "--network", choices=NETWORK_STAGES, help="the stage that --checkpoint writes (the last)"
    )
    args = parser.parse_args()
    if args.checkpoint:
        write_checkpoint(args.run, args.checkpoint, args.network)
        return 0
    stages = args.stages.split(",")
    unknown = set(stages) - set(STAGES)
    if unknown:
        print(
            f"error: unknown stage {', '.join(sorted(unknown))}: choose from {', '.join(STAGES)}",
            file=sys.stderr,
        )
        return 2
    # A scheduler's SIGTERM, and SIGINT to a background job, stop as Ctrl-C does: the state is saved.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if args.start:
        try:
            started = start_from(args.start, args.run, TINY)
        except KontextError as fault:
            print(f"error: {fault}", file=sys.stderr)
            return 2
        for stage in started:
            print(f"stage {stage!r} starts from {args.start}")
    minutes = {stage: getattr(args, f"{stage}_minutes") for stage in STAGES}
    try:
        train(args.run, stages, minutes, args.device, args.compile)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
