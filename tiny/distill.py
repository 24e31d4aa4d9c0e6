"""Stages 3 and 4: the guidance scale becomes an input, then four steps become enough.

Guidance (Meng et al. 2023, "On Distillation of Guided Diffusion Models"): the student, told the scale w, learns the
teacher's v(empty) + w * (v(prompt) - v(empty)) in one evaluation, as FLUX [dev] does.

Few steps (Wang et al. 2024, "Phased Consistency Models"): the flow's time is cut where the 4-step schedule steps;
inside a phase the student's straight line must reach the same end from every point of the teacher's trajectory. Because
each phase keeps its own end, the model stays a flow that more steps can follow too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Encoder, KontextConfig
from . import run_state
from .network import KontextNetwork, Prompts
from .pool import EditPool
from .train_flow import (
    BATCH,
    FRESH_PER_STEP,
    block_matrices,
    compile_blocks,
    optimizers_for,
    shifted_time,
    stance,
)

GUIDANCE_RANGE = (1.0, 4.0)
GUIDANCE_STRENGTH = 1 / 3
"""How much of the scale beyond 1 the student takes to heart. FLUX's default of 2.5 so means 1.5 here: halfway through
the flow's training 69 of 90 edits succeeded at that, 65 at 1 and 63 at 2.5 (8 steps). They have one right answer,
easily overshot, and the better the flow, the less guidance it needs.
"""
PHASES = 4
TEACHER_STEPS_PER_PHASE = 8
POOL = 8_192
FIRST_FILL = 1_024


@dataclass
class Conditioned:
    """One batch with everything a velocity needs but the point on the trajectory."""

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
    """Squared distance to the teacher's guided velocity, v(empty) + w' * (v(prompt) - v(empty)) with w' nearer to 1."""
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
    """Times where the few-step schedule steps, from 1 down to 0."""
    return shifted_time(torch.linspace(1, 0, PHASES + 1, device=device))


def consistency_loss(
    student: KontextNetwork, average: KontextNetwork, teacher: KontextNetwork, batch: Conditioned
) -> Tensor:
    """Squared distance between the velocities that reach the phase's end from here and from one teacher step on."""
    rows, device = len(batch.target), batch.target.device
    edges = phase_edges(device)
    phase = torch.randint(PHASES, (rows,), device=device)
    start, end = edges[phase], edges[phase + 1]
    # Positions 0 .. T-1 in the phase; 0, its very start, is the only one that 4-step sampling visits: half of the rows.
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
    return (
        error * ((time - end) / (start - end))
    ).mean()  # short remainders divide by little: weigh them less


LOSSES: dict[str, tuple[Loss, float]] = {
    "guidance": (guidance_loss, 5e-4),
    "fewstep": (consistency_loss, 4e-4),
}
"""Stage → its loss and peak learning rate."""


def load_network(config: KontextConfig, state: Path, device: str) -> KontextNetwork:
    """A frozen network with the averaged weights of a finished stage."""
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
    """Trains stage "guidance" or "fewstep" from `teacher_state`'s averaged weights; text encoders stay as they are."""
    loss_of, peak_rate = LOSSES[stage]
    path = run / f"{stage}.safetensors"
    teacher = load_network(config, teacher_state, device)
    student = copy.deepcopy(teacher).requires_grad_(True)
    for text_encoder in (student.text_encoder, student.text_encoder_2):
        text_encoder.requires_grad_(False)
    average_network = copy.deepcopy(teacher)
    if compiled:
        for network in (teacher, student, average_network):
            compile_blocks(network)
    matrices = [p for p in block_matrices(student) if p.requires_grad]
    session = run_state.Session(path, student, optimizers_for(student, matrices), 0.995)
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
    smooth = run_state.Smooth()
    with session.training(minutes) as clock:
        while clock.fraction < 1:
            rate = peak_rate * min(1, (session.step + 1) / 100) * (1 - clock.fraction)
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
            smooth.add(float(loss.detach()))
            if session.step % 10 == 0:
                session.show(loss=f"{smooth.value:.5f}")


@torch.no_grad()
def copy_into(network: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
