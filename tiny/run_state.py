"""The state of a training stage on disk, as safetensors: weights, their running average, optimizer state, counters.

A stage saves every two minutes and on Ctrl-C. Started again, it continues where it stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..files import replacing

SAVE_SECONDS = 120
"""Time between two saves: what a killed process loses at most."""


class Average:
    """Exponential moving average of parameters; its decay is warmed up, so that early steps are soon forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)


class RunningMean:
    """The running mean of about the last hundred values, for the progress bar; starts at the first value."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) / min(self.count, 100)


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the optimizers' states, as "optimizer/<name>/<parameter index>/<key>"."""
    tensors = {}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer/{name}/{index}/{key}"] = torch.as_tensor(value)
    return tensors


def save(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: Mapping[str, torch.optim.Optimizer],
    counters: Mapping[str, float],
) -> None:
    """Writes a state to `path`, whole or not at all."""
    tensors = {f"model/{name}": p.detach() for name, p in module.named_parameters()}
    tensors |= {f"average/{name}": value for name, value in average.weights.items()}
    tensors |= optimizer_tensors(optimizers)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"counters": json.dumps(dict(counters))})


def load(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, float]:
    """Restores what `save` wrote and returns its counters; an empty dict if there is no file."""
    if not path.exists():
        return {}
    optimizer_state: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in optimizers}
    parameters = dict(module.named_parameters())
    with safe_open(path, "pt") as file, torch.no_grad():
        counters: dict[str, float] = json.loads(file.metadata()["counters"])
        for key in file.keys():  # noqa: SIM118 (a safetensors file, not a dict)
            part, rest = key.split("/", 1)
            value = file.get_tensor(key)
            if part == "model":
                parameters[rest].copy_(value)
            elif part == "average":
                average.weights[rest].copy_(value)
            else:
                name, index, field = rest.split("/")
                optimizer_state[name].setdefault(int(index), {})[field] = value
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        state["state"] = optimizer_state[name]
        optimizer.load_state_dict(state)
    return counters


def load_average(path: Path) -> dict[str, Tensor]:
    """The averaged weights, which the next stage and the checkpoint use."""
    with safe_open(path, "pt") as file:
        start = "average/"
        return {key[len(start) :]: file.get_tensor(key) for key in file.keys() if key.startswith(start)}  # noqa: SIM118


class TimeBudget:
    """Training time spent, as a share of its budget, so that the learning rate reaches zero when the time is up."""

    def __init__(self, budget_seconds: float, spent: float = 0.0) -> None:
        self.budget = budget_seconds
        self.start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    @property
    def fraction(self) -> float:
        return min(self.spent / self.budget, 1.0)


class TrainingSession:
    """The training of one stage: its state on disk, its time budget and its progress bar.

    Args:
        path: file of the state; training continues from it if it exists.
        module: the module to train.
        optimizers: over the module's parameters.
        decay: of the running average.
    """

    def __init__(
        self, path: Path, module: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], decay: float
    ) -> None:
        self.path, self.module, self.optimizers = path, module, optimizers
        self.average = Average(module, decay)
        counters = load(path, module, self.average, optimizers)
        self.step = int(counters.get("step", 0))
        self.seconds = counters.get("seconds", 0.0)

    def data_seed(self, stage: int) -> list[int]:
        """Seed of a stage's data: fixed for a new run, another one each time that training continues."""
        return [stage, self.step, os.getpid() if self.step else 0]

    @contextmanager
    def training(self, minutes: float) -> Iterator[TimeBudget]:
        """Trains for `minutes` in all, earlier runs included. However the block ends, the state is saved."""
        self.time = TimeBudget(minutes * 60, self.seconds)
        self.saved = self.time.spent
        total, initial = round(self.time.budget), round(self.time.spent)
        with tqdm(total=total, initial=initial, unit="s", desc=self.path.stem) as self.bar:
            try:
                yield self.time
            finally:
                self.save()

    def set_learning_rate(self, rate: float) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def update(self, loss: Tensor) -> None:
        """One step of every optimizer down the gradient of `loss`; saves when `SAVE_SECONDS` have passed."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.average.update(self.module, self.step)
        self.step += 1
        if self.time.spent - self.saved > SAVE_SECONDS:
            self.save()
            self.saved = self.time.spent

    def show(self, **figures: str) -> None:
        self.bar.set_postfix(step=self.step, **figures)
        self.bar.n = round(min(self.time.spent, self.time.budget))
        self.bar.refresh()

    def save(self) -> None:
        counters = {"step": self.step, "seconds": self.time.spent}
        save(self.path, self.module, self.average, self.optimizers, counters)
