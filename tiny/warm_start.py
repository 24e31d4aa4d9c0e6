"""Starts a run from a checkpoint's weights, so that training can continue after its run folder is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from ..errors import KontextError
from ..model.autoencoder import Autoencoder
from ..model.checkpoint import load_state
from ..model.config import KontextConfig
from . import run_state
from .network import KontextNetwork

NETWORK_PARTS = ("text_encoder", "text_encoder_2", "modulation", "transformer")


def start_from(checkpoint: Path, run: Path, config: KontextConfig) -> list[str]:
    """Writes states at step 0, with a checkpoint's weights, of the stages "autoencoder" and "flow" that `run` lacks.

    The checkpoint's tokenizers are copied, since its text encoders were trained with them. Existing states are kept, so
    the same command continues where it stopped. Later stages start from the flow, as always.

    Args:
        checkpoint: a diffusers folder of the embedded model, as `train --checkpoint` writes it.
        config: the model's sizes; must be the checkpoint's.

    Returns:
        The stages whose states were written.

    Raises:
        KontextError: the checkpoint is missing, incomplete or of other sizes than `config`.
    """
    weights = load_state(checkpoint)
    autoencoder, network = Autoencoder(config.autoencoder), KontextNetwork(config)
    try:
        autoencoder.encoder.load_state_dict(weights["vae_encoder"])
        autoencoder.decoder.load_state_dict(weights["vae_decoder"])
        for part in NETWORK_PARTS:
            network.get_submodule(part).load_state_dict(weights[part])
    except RuntimeError as error:  # from load_state_dict, with a list of all mismatches
        raise KontextError(
            f"{checkpoint} has other sizes than {config.name}: a run can only start from a checkpoint of the same model"
        ) from error
    run.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "tokenizer_2"):
        if not (run / name).exists():
            shutil.copytree(checkpoint / name, run / name)
    started = []
    modules: dict[str, nn.Module] = {"autoencoder": autoencoder, "flow": network}
    for stage, module in modules.items():
        path = run / f"{stage}.safetensors"
        if not path.exists():
            average = run_state.Average(module, 0.0)
            no_optimizers: dict[str, torch.optim.Optimizer] = {}
            run_state.save(path, module, average, no_optimizers, {"step": 0, "seconds": 0.0})
            started.append(stage)
    return started
