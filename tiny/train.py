"""Trains the embedded model: `python -P -m kontext.tiny.train --run runs/tiny`, from scratch or from a checkpoint.

Stages run in order, each for its own time; started again, a stage continues where it stopped (Ctrl-C is safe).
`--checkpoint FOLDER` writes a run as a diffusers folder, with the weights of its last stages.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from ..command import Parser, run_command
from ..errors import KontextError
from ..model.autoencoder import Autoencoder
from ..model.config import AutoencoderConfig, KontextConfig
from ..model.diffusers_folder import save_diffusers
from . import run_state
from .architecture import TINY
from .distill import distill, load_network
from .edits import all_prompts_corpus
from .pool import normalization
from .train_autoencoder import draw_pictures, train_autoencoder, train_decoder
from .train_flow import train_flow
from .variety import varied_prompts_corpus
from .vocabulary import extend_t5, train_clip, train_t5
from .warm_start import start_from

NETWORK_STAGES = ("flow", "guidance", "fewstep")
STAGES = ("autoencoder", *NETWORK_STAGES, "decoder")
MINUTES = {"autoencoder": 45.0, "flow": 100.0, "guidance": 10.0, "fewstep": 15.0, "decoder": 12.0}
"""About three hours on two idle cores. On slower or busy cores fewer steps fit; the model still works."""


def train_tokenizers(run: Path) -> None:
    """Trains both tokenizers on the usual instructions, unless they exist, and adds the words of all others to T5's."""
    clip, t5 = TINY.text_encoder, TINY.text_encoder_2
    if not (run / "tokenizer_2" / "tokenizer.json").exists():
        corpus = list(all_prompts_corpus())
        train_clip(corpus, clip.vocab_size, clip.max_length, run / "tokenizer")
        train_t5(corpus, t5.vocab_size, t5.max_length, run / "tokenizer_2")
    extend_t5(varied_prompts_corpus(), t5.vocab_size, run / "tokenizer_2")


def trained_autoencoder(config: AutoencoderConfig, run: Path) -> Autoencoder:
    """The autoencoder of stage 1, with a configuration that normalizes its latents."""
    weights = run_state.load_average(run / "autoencoder.safetensors")
    model = Autoencoder(config)
    model.load_state_dict(weights)
    shift, scale = normalization(model, draw_pictures(np.random.default_rng(0), 256))
    fitted = dataclasses.replace(config, shift_factor=round(shift, 4), scaling_factor=round(scale, 4))
    model = Autoencoder(fitted).requires_grad_(False)
    model.load_state_dict(weights)
    return model


def write_checkpoint(run: Path, folder: Path, stage: str | None = None) -> None:
    """Writes the averaged weights, in bf16, as a diffusers folder.

    The network's are those of `stage`, one of NETWORK_STAGES (default: the last one trained); the decoder's are those
    of stage "decoder", if it was trained.
    """
    trained = [name for name in NETWORK_STAGES if (run / f"{name}.safetensors").exists()]
    if not trained:
        raise KontextError(f"{run} has no trained network: train stage {NETWORK_STAGES[0]} first")
    stage = stage or trained[-1]
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
    train_tokenizers(run)
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


def main(arguments: list[str] | None = None) -> int:
    return run_command(
        lambda: run_training(arguments), after_interrupt=lambda: "; the same command continues from here"
    )


def minutes_of_training(text: str) -> float:
    """A number of minutes, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes, 0 or more")
    return value


def run_training(arguments: list[str] | None) -> None:
    parser = Parser(prog="python -P -m kontext.tiny.train", description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/tiny"),
        help="folder of the training state (default: runs/tiny)",
    )
    parser.add_argument(
        "--stages", default=",".join(STAGES), help=f"stages to run, in order (default: {','.join(STAGES)})"
    )
    for stage in STAGES:
        text = f"training time of this stage, earlier runs included (default: {MINUTES[stage]:g})"
        parser.add_argument(
            f"--{stage}-minutes", type=minutes_of_training, default=MINUTES[stage], metavar="N", help=text
        )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="CHECKPOINT",
        help="diffusers folder whose weights a new run starts from",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the transformer (needs a C++ compiler)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="write the run as a diffusers folder, and train nothing",
    )
    parser.add_argument(
        "--network",
        choices=NETWORK_STAGES,
        help="stage that --checkpoint writes (default: the last one trained)",
    )
    options = parser.parse_args(arguments)
    if options.checkpoint:
        write_checkpoint(options.run, options.checkpoint, options.network)
        return
    stages = options.stages.split(",")
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise KontextError(f"unknown stage {', '.join(sorted(unknown))}: choose from {', '.join(STAGES)}")
    # SIGINT to a background job stops training as Ctrl-C does: the state is saved.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.start:
        for stage in start_from(options.start, options.run, TINY):
            print(f"stage {stage!r} starts from {options.start}")
    minutes = {stage: getattr(options, f"{stage}_minutes") for stage in STAGES}
    train(options.run, stages, minutes, options.device, options.compile)


if __name__ == "__main__":
    sys.exit(main())
