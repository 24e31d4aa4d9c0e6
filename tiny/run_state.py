"""What a training run keeps on disk, as safetensors: weights, their running average, optimizer state, counters.

A stage saves every few minutes and on Ctrl-C; started again, it goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class Average:
    """Exponential moving average of parameters, warmed up so that early steps do not linger."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the optimizers' state, as "optimizer/<name>/<parameter index>/<key>"."""
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
    """Writes a whole run state to `path`; the file appears whole or not at all."""
    tensors = {f"model/{name}": p.detach() for name, p in module.named_parameters()}
    tensors |= {f"average/{name}": value for name, value in average.weights.items()}
    tensors |= optimizer_tensors(optimizers)
    partial = path.with_suffix(".partial")
    save_file(
        {name: t.contiguous() for name, t in tensors.items()},
        partial,
        {"counters": json.dumps(dict(counters))},
    )
    partial.replace(path)


def load(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, float]:
    """Restores what `save` wrote and returns its counters; an empty dict when there is nothing to go on from."""
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


def load_average(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The averaged weights below `prefix`, which is cut off: what the next stage and the checkpoint use."""
    with safe_open(path, "pt") as file:
        start = f"average/{prefix}"
        return {key[len(start) :]: file.get_tensor(key) for key in file.keys() if key.startswith(start)}  # noqa: SIM118


class Clock:
    """Training time against its budget, so that the learning rate ends at zero when the time does."""

    def __init__(self, budget_seconds: float, spent: float = 0.0) -> None:
        self.budget = budget_seconds
        self.start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    @property
    def fraction(self) -> float:
        return min(self.spent / self.budget, 1.0)
