"""Stages 3 and 4: guidance distillation, then few-step distillation.

Guidance (Meng et al. 2023, "On Distillation of Guided Diffusion Models"): with the scale w as an input, the student
learns the teacher's v(empty) + w * (v(prompt) - v(empty)) in one evaluation, as FLUX [dev] does.

Few steps (Wang et al. 2024, "Phased Consistency Models"): the 4-step schedule divides the flow's time into phases;
within a phase, the student's straight line must end at the same point from everywhere on the teacher's trajectory.
Since every phase has its own end point, the model is still a flow, and can be sampled with more steps too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.autoencoder import Encoder
from ..model.config import KontextConfig
from . import run_state
from .network import KontextNetwork, Prompts
from .pool import EditPool
from .train_flow import (
    BATCH,
    FRESH_PER_STEP,
    block_matrices,
    compile_transformer,
    optimizers_for,
    shifted_time,
    stance,
)

GUIDANCE_RANGE = (1.0, 4.0)
GUIDANCE_STRENGTH = 1 / 3
"""The student learns scale 1 + (w - 1) / 3 for input w, so FLUX's default of 2.5 means 1.5 here. Halfway through the
flow's training, 69 of 90 edits succeeded at 1.5, 65 at 1 and 63 at 2.5 (8 steps): edits have one correct answer, which
guidance easily overshoots, and the better the flow, the less guidance it needs.
"""
PHASES = 4
TEACHER_STEPS_PER_PHASE = 8
POOL = 8_192
FIRST_FILL = 1_024


@dataclass
class Conditioned:
    """A batch with all inputs of the velocity except the point on the trajectory."""

    target: Tensor
    source: Tensor
    pooled: Tensor
    text: Tensor
    empty_pooled: Tensor
    empty_text: Tensor
    guidance: Tensor


Loss = Callable[[KontextNetwork, KontextNetwork, KontextNetwork, Conditioned], Tensor]
"""(student, its running average, teacher, batch) → scalar loss."""


def guidance_loss(
    student: KontextNetwork, _: KontextNetwork, teacher: KontextNetwork, batch: Conditioned
) -> Tensor:
    """Squared distance to the teacher's v(empty) + w' * (v(prompt) - v(empty)), w' = 1 + `GUIDANCE_STRENGTH` * (w -
    1)."""
    time = shifted_time(torch.rand(len(batch.target), device=batch.target.device))
    noisy = torch.lerp(batch.target, torch.randn_like(batch.target), time[:, None, None])
    one = torch.ones_like(batch.guidance)
    with torch.no_grad():
        prompted = teacher(noisy, batch.source, batch.pooled, batch.text, time, one).float()
        empty = teacher(noisy, batch.source, batch.empty_pooled, batch.empty_text, time, one).float()
        strength = 1 + GUIDANCE_STRENGTH * (batch.guidance - 1)
        wanted = torch.lerp(empty, prompted, strength[:, None, None])
    return F.mse_loss(
        student(noisy, batch.source, batch.pooled, batch.text, time, batch.guidance).float(), wanted
    )


def phase_edges(device: torch.device | str) -> Tensor:
    """The times of the few-step schedule, from 1 down to 0."""
    return shifted_time(torch.linspace(1, 0, PHASES + 1, device=device))


def consistency_loss(
    student: KontextNetwork, average: KontextNetwork, teacher: KontextNetwork, batch: Conditioned
) -> Tensor:
    """Squared distance between the velocities to the phase's end from here, and from one step of the teacher further
    on."""
    rows, device = len(batch.target), batch.target.device
    edges = phase_edges(device)
    phase = torch.randint(PHASES, (rows,), device=device)
    start, end = edges[phase], edges[phase + 1]
    # Positions 0 .. T-1 in the phase. Half of the rows take 0, its start: the only one that 4-step sampling visits.
    position = torch.randint(TEACHER_STEPS_PER_PHASE, (rows,), device=device) * (
        torch.rand(rows, device=device) < 0.5
    )
    step = (start - end) / TEACHER_STEPS_PER_PHASE
    time = start - position * step
    later = torch.where(position == TEACHER_STEPS_PER_PHASE - 1, end, time - step)
    noisy = torch.lerp(batch.target, torch.randn_like(batch.target), time[:, None, None])

    def velocity(network: KontextNetwork, x: Tensor, t: Tensor) -> Tensor:
        return network(x, batch.source, batch.pooled, batch.text, t, batch.guidance).float()

    with torch.no_grad():
        moved = noisy + (later - time)[:, None, None] * velocity(teacher, noisy, time)
        reached = moved + (end - later)[:, None, None] * velocity(average, moved, later)
        wanted = (reached - noisy) / (end - time)[:, None, None]
    error = (velocity(student, noisy, time) - wanted).square().mean((1, 2))
    remaining = (time - end) / (start - end)
    return (
        error * remaining
    ).mean()  # `wanted` divides by what remains of the phase, so errors near its end are large


LOSSES: dict[str, tuple[Loss, float]] = {
    "guidance": (guidance_loss, 5e-4),
    "fewstep": (consistency_loss, 4e-4),
}
"""Stage → its loss and peak learning rate."""


def load_network(config: KontextConfig, state: Path, device: str) -> KontextNetwork:
    """A frozen network with the averaged weights of a stage's state."""
    network = KontextNetwork(config)
    network.load_state_dict(run_state.load_average(state))
    return network.requires_grad_(False).to(device)


def distill(
    stage: str,
    teacher_state: Path,
    config: KontextConfig,
    encoder: Encoder,
    run: Path,
    minutes: float,
    device: str,
    compiled: bool = False,
) -> None:
    """Trains stage "guidance" or "fewstep" from `teacher_state`'s averaged weights; text encoders are frozen."""
    loss_of, peak_rate = LOSSES[stage]
    path = run / f"{stage}.safetensors"
    teacher = load_network(config, teacher_state, device)
    student = copy.deepcopy(teacher).requires_grad_(True)
    for text_encoder in (student.text_encoder, student.text_encoder_2):
        text_encoder.requires_grad_(False)
    average_network = copy.deepcopy(teacher)
    if compiled:
        for network in (teacher, student, average_network):
            compile_transformer(network)
    matrices = [p for p in block_matrices(student) if p.requires_grad]
    session = run_state.TrainingSession(path, student, optimizers_for(student, matrices), 0.995)
    prompts = Prompts(run, config)
    pool = EditPool(encoder, POOL, session.data_seed(3), device)
    pool.fill(FIRST_FILL)
    torch.manual_seed(session.step)
    empty = [ids.to(device) for ids in prompts([""])]
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        empty_pooled, empty_text = (
            part.expand(BATCH, *part.shape[1:]) for part in teacher.encode_text(*empty)
        )
    low, high = GUIDANCE_RANGE
    shown_loss = run_state.RunningMean()
    with session.training(minutes) as budget:
        while budget.fraction < 1:
            rate = peak_rate * min(1, (session.step + 1) / 100) * (1 - budget.fraction)
            session.set_learning_rate(rate)
            pool.add(FRESH_PER_STEP)
            drawn = pool.sample(BATCH)
            clip_ids, t5_ids = (ids.to(device) for ids in prompts(drawn.prompts))
            with torch.autocast(device, torch.bfloat16), stance(drawn):
                with torch.no_grad():
                    pooled, text = teacher.encode_text(clip_ids, t5_ids)
                guidance = low + (high - low) * torch.rand(BATCH, device=device)
                batch = Conditioned(
                    drawn.target, drawn.source, pooled, text, empty_pooled, empty_text, guidance
                )
                loss = loss_of(student, average_network, teacher, batch)
            session.update(loss)
            copy_into(average_network, session.average.weights)
            shown_loss.add(float(loss.detach()))
            if session.step % 10 == 0:
                session.show(loss=f"{shown_loss.value:.5f}")


@torch.no_grad()
def copy_into(network: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
