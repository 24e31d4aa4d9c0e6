"""Writes LoRA files for the tiny model, and fuses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kontext.model.checkpoint import Checkpoint
from kontext.model.lora.read import LoraFile, read_loras

State = dict[str, dict[str, Tensor]]
Tensors = dict[str, Tensor]


def linears(checkpoint: Checkpoint, *networks: str) -> dict[str, tuple[int, ...]]:
    """Native module → shape, of linears alone."""
    return {
        weight.removesuffix(".weight"): shape
        for network in networks
        for weight, shape in checkpoint.networks[network].shapes.items()
        if len(shape) == 2 and "embedding" not in weight
    }


def diffusers_linears(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    files = checkpoint.networks["transformer"].files
    parts = (part for name in ("transformer", "modulation") for part in linear_parts(checkpoint, name))
    return {part.removesuffix(".weight"): files[part].shape for part in parts}


def linear_parts(checkpoint: Checkpoint, network: str) -> list[str]:
    """The tensors of a diffusers folder that make up a network's linears."""
    sources = checkpoint.networks[network].sources
    return [part for module in linears(checkpoint, network) for part in sources[f"{module}.weight"].parts]


def factors(
    shapes: dict[str, tuple[int, ...]], spell: Callable[[str], str] = str, style: str = "A B", seed: int = 0
) -> Tensors:
    """Factors of ranks 1 to 3; `style` has the endings of the down and up factors' names."""
    generator = torch.Generator().manual_seed(seed)
    down, up = (f"lora_{end}" if end[0] in "AB" else end for end in style.split())
    tensors = {}
    for index, (module, (height, width)) in enumerate(shapes.items()):
        rank = 1 + index % 3
        tensors[f"{spell(module)}.{down}.weight"] = torch.randn(rank, width, generator=generator) * 0.3
        tensors[f"{spell(module)}.{up}.weight"] = torch.randn(height, rank, generator=generator) * 0.3
    return tensors


def kohya(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module.replace(".", "_")


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def fuse(
    checkpoint: Checkpoint, state: State, *requests: tuple[Path, float], partial: bool = False
) -> tuple[State, list[LoraFile]]:
    shapes = {name: network.shapes for name, network in checkpoint.networks.items()}
    updates, files = read_loras(requests, shapes, checkpoint.config, partial)
    fused = {network: {key: tensor.clone() for key, tensor in state[network].items()} for network in state}
    for network, weights in updates.items():
        for weight, changes in weights.items():
            for change in changes:
                change.apply_to(fused[network][weight])
    assert sum(file.updates for file in files) == sum(
        len(changes) for weights in updates.values() for changes in weights.values()
    )
    return fused, files


def assert_same(fused: State, expected: State) -> None:
    for network, weights in expected.items():
        for weight, tensor in weights.items():
            torch.testing.assert_close(
                fused[network][weight].double(),
                tensor,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda text, at=f"{network} {weight}": f"{at}: {text}",
            )
