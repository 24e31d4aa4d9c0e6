"""Stage 2: the rectified flow, including the text encoders, from (source, instruction, target) triples.

x_t = (1 - t) target + t noise; the network learns noise - target (Liu et al. 2022, Lipman et al. 2022). In 5 % of the
rows the instruction is dropped, for classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.autoencoder import Encoder
from ..model.config import KontextConfig
from . import run_state
from .network import KontextNetwork, Prompts, initialize_network
from .pool import Batch, EditPool

BATCH = 40
POOL = 16_384
FIRST_FILL = 2_048
FRESH_PER_STEP = 5
DROP_PROMPT = 0.05
FOREGROUND_WEIGHT = 4.0
LEARNING_RATE = 1.5e-3
TIME_SHIFT = 1.6
"""e^mu of the sampler's shift for 64 target tokens."""
TRAINING_SHIFT = 5.0
"""More than sampling's, so that training sees more noise. An edit has one correct answer: near time 1 it must be found
from source and instruction alone; at small times the noisy latents already show it, and only invisible details of the
latents are left to learn."""


def shifted_time(uniform: Tensor, shift: float = TIME_SHIFT) -> Tensor:
    return shift * uniform / (1 + (shift - 1) * uniform)


def optimizers_for(network: nn.Module, matrices: list[Tensor]) -> dict[str, torch.optim.Optimizer]:
    """Muon for the blocks' matrices (Jordan et al. 2024), AdamW for all other parameters."""
    chosen = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in chosen]
    return {
        "muon": torch.optim.Muon(matrices, LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        "adam": torch.optim.AdamW(rest, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0),
    }


def block_matrices(network: KontextNetwork) -> list[Tensor]:
    """The weights of all linears inside blocks, including the text encoders': those that Muon trains."""
    blocks: list[nn.Module] = [
        *network.transformer.double_blocks,
        *network.transformer.single_blocks,
        *network.text_encoder.text_model.encoder.layers,
        *network.text_encoder_2.encoder.block,
    ]
    return [module.weight for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]


def compile_transformer(network: KontextNetwork) -> None:
    """Compiles modulation and transformer: on a CPU, fused pointwise operators cut a step from 0.90 s to 0.61 s.

    Needs a C++ compiler and, once per machine, a few minutes. The text encoders stay uncompiled: they are small, and
    prompts vary in length.
    """
    network.modulation.compile(dynamic=False)
    network.transformer.compile(dynamic=False)


def stance(batch: Batch) -> AbstractContextManager[None]:
    """A context in which a batch without reference runs uncompiled: too rare for a graph of that shape to pay off."""
    manager: AbstractContextManager[None] = torch.compiler.set_stance(
        "default" if batch.source.shape[1] else "force_eager"
    )
    return manager


def train_flow(
    config: KontextConfig, encoder: Encoder, run: Path, minutes: float, device: str, compiled: bool = False
) -> None:
    """Trains for `minutes` in all, earlier runs included; the state is `run`/flow.safetensors, beside the
    tokenizers."""
    path = run / "flow.safetensors"
    torch.manual_seed(0)
    network = KontextNetwork(config)
    initialize_network(network)
    network.to(device)
    if compiled:
        compile_transformer(network)
    session = run_state.TrainingSession(
        path, network, optimizers_for(network, block_matrices(network)), 0.999
    )
    torch.manual_seed(session.step)
    prompts = Prompts(run, config)
    pool = EditPool(encoder, POOL, session.data_seed(2), device)
    pool.fill(FIRST_FILL)
    shown_loss = run_state.RunningMean()
    with session.training(minutes) as budget:
        while budget.fraction < 1:
            decay = min(1.0, (1 - budget.fraction) / 0.6)  # constant, then linear to zero
            session.set_learning_rate(LEARNING_RATE * min(1, (session.step + 1) / 200) * decay)
            filling = len(pool.pairs[True]) < POOL
            pool.add(FRESH_PER_STEP * (2 if filling else 1))
            batch = pool.sample(BATCH)
            dropped = torch.rand(BATCH) < DROP_PROMPT
            texts = ["" if drop else prompt for drop, prompt in zip(dropped, batch.prompts, strict=True)]
            clip_ids, t5_ids = (ids.to(device) for ids in prompts(texts))
            time = shifted_time(torch.rand(BATCH, device=device), TRAINING_SHIFT)
            noise = torch.randn_like(batch.target)
            noisy = torch.lerp(batch.target, noise, time[:, None, None])
            with torch.autocast(device, torch.bfloat16), stance(batch):
                pooled, text = network.encode_text(clip_ids, t5_ids)
                guidance = torch.ones(BATCH, device=device)
                velocity = network(noisy, batch.source, pooled, text, time, guidance).float()
            error = (velocity - (noise - batch.target)).square().mean(-1)
            session.update((error * foreground_weight(batch.source, batch.target)).mean())
            shown_loss.add(float(error.detach().mean()))
            if session.step % 10 == 0:
                session.show(loss=f"{shown_loss.value:.4f}")


def foreground_weight(source: Tensor, target: Tensor) -> Tensor:
    """Weights of the tokens' errors [batch, tokens], mean 1: higher for tokens that change or show an object.

    Objects to keep count as much as objects to change, since the network must tell them apart by the instruction.
    """
    background = target.median(dim=1, keepdim=True).values
    shown = (target - background).square().mean(-1) > 0.05
    if source.shape[1]:
        shown |= (source - target).square().mean(-1) > 0.05
    weight = 1 + FOREGROUND_WEIGHT * shown.float()
    return weight / weight.mean()
