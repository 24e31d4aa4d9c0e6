"""One line of advice when the GPU is out of memory: what would fit, by the planner's arithmetic (`quant.memory`).

These are estimates from shapes and formats; what a driver and its libraries take was not measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ....compute_capability import sm_name
from ....kernels.launch import device_capability
from ....model.build_network import build_network
from ....model.config import KontextConfig
from ....model.networks import NETWORKS
from ....quant.memory import CUDA, Workload, demands
from ....quant.options import Option
from ....quant.planner import Choice, Item
from ....quant.recipe import COMPUTE_BYTES, SPARED, Recipe, Rule
from ....safetensors_header import read_header
from ...bundle import Bundle
from ...units import gigabytes

InputShapes = Mapping[str, Sequence[int]]

SMALLEST = (Option("int4"), Option("nf4"))
"""The smallest formats of a weight that every GPU runs."""

SIZED = ("transformer", "vae_encoder", "vae_decoder")
"""Networks that need less memory for a smaller picture."""

ON_DEVICE = 2
"""Blocks on the GPU with `--offload`: one computes while the next is copied."""


@dataclass(frozen=True)
class Device:
    """A GPU's free and total bytes, and its compute capability times ten (0: not known)."""

    free: int
    total: int
    capability: int = 0

    @classmethod
    def of(cls, device: torch.device) -> Device:
        if device.type != "cuda":  # advice is for GPUs only
            return cls(0, 0)
        free, total = torch.cuda.mem_get_info(device)
        share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
        allowed = int(share(device.index) * total)
        if allowed < total:
            free, total = min(free, allowed - torch.cuda.memory_reserved(device)), allowed
        return cls(free, total, device_capability(device))

    @property
    def budget(self) -> int:
        """Bytes for an edit, with those of the driver, which the planner subtracts."""
        return min(self.free + CUDA.overhead, self.total)


def is_exhausted(error: RuntimeError) -> bool:
    """Whether the device is out of memory, by PyTorch's error or that of the driver or its libraries."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or bool(
        re.search("CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED", str(error))
    )


def workload(config: KontextConfig, graph: str, shapes: InputShapes) -> Workload:
    """The edit that a network's inputs belong to; if they do not tell its size, it is the model's square."""
    side, downscale = 2 * config.autoencoder.downscale, config.autoencoder.downscale
    square = config.autoencoder.sample_size
    rows = max((shape[0] for shape in shapes.values() if shape), default=1)
    if graph == "transformer" and "target" in shapes:
        batch, tokens, _ = shapes["target"]
        reference = shapes["reference"][1] if "reference" in shapes else 0
        return Workload(tokens * side, side, math.ceil(reference / max(tokens, 1)), batch, 1)
    if graph == "vae_encoder" and "image" in shapes:
        return Workload(shapes["image"][3], shapes["image"][2], 1, 1, 1)
    if graph == "vae_decoder" and "latents" in shapes:
        return Workload(shapes["latents"][3] * downscale, shapes["latents"][2] * downscale, 0, 1, 1)
    if graph == "modulation":
        return Workload(square, square, 1, 1, rows)
    return Workload(square, square, 1, rows, 1)


def smallest(config: KontextConfig, graph: str, compute: str) -> int:
    """Bytes of a network's weights in the smallest formats that the planner has, plus those of one unpacked layer."""
    with torch.device("meta"):
        network = build_network(graph, config)
    recipe = Recipe("", {graph: compute}, (*SPARED, Rule("*", "*", SMALLEST[0].format)))
    wide, items, quantized, largest = COMPUTE_BYTES[compute], [], 0, 0
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear):
            shape = (module.in_features, module.out_features)
            if recipe.layer_of(graph, f"{path}.weight", shape, True).format != compute:
                choices = [Choice(str(each), each.stored_bytes(shape, wide), 0.0) for each in SMALLEST]
                items.append(Item(path, tuple(choices)))
                quantized += math.prod(shape)
                largest = max(largest, wide * math.prod(shape))
    others = sum(tensor.numel() for tensor in network.state_dict().values()) - quantized
    return wide * others + sum(item.smallest() for item in items) + largest


def bytes_at_once(weights: Mapping[str, int], part_of: Callable[[str], str | None], at_once: int) -> int:
    """Bytes of weights on the GPU if only `at_once` parts are there at a time.

    Args:
        weights: tensor → bytes.
        part_of: tensor → its part; None for a tensor that is always there.
        at_once: parts on the GPU; the largest ones count.
    """
    parts: dict[str, int] = {}
    others = 0
    for name, size in weights.items():
        part = part_of(name)
        if part is None:
            others += size
        else:
            parts[part] = parts.get(part, 0) + size
    return others + sum(sorted(parts.values())[-at_once:])


def offloaded(weights: Mapping[str, int]) -> int:
    """Bytes on the GPU of the transformer's `weights` (tensor → bytes) with `--offload`."""

    def block(name: str) -> str | None:
        match = re.match(r"(?:double|single)_blocks\.\d+\.", name)
        return match and match[0]

    return bytes_at_once(weights, block, ON_DEVICE)


def streamed(config: KontextConfig, graph: str, weights: Mapping[str, int]) -> int:
    """Bytes on the GPU of another network's `weights` (tensor → bytes) if its linears' are copied one by one."""
    with torch.device("meta"):
        network = build_network(graph, config)
    linears = {path for path, module in network.named_modules() if isinstance(module, nn.Linear)}

    def linear(name: str) -> str | None:
        path = re.split(r"\.(?:weight|bias)", name)[0]
        return path if path in linears else None

    return bytes_at_once(weights, linear, 1)


def advise(
    config: KontextConfig,
    compute: Mapping[str, str],
    graph: str,
    weights: Mapping[str, int],
    work: Workload,
    device: Device,
    *,
    offload: bool = False,
    reuse: bool = False,
) -> str:
    """One line: how much memory `graph` takes, and what would fit.

    Args:
        config: the model's sizes.
        compute: network → what it computes in.
        graph: the network that did not fit.
        weights: its tensors → bytes.
        work: the edit.
        device: the GPU.
        offload, reuse: whether the options `offload` and `reuse_reference` are on.
    """
    needs = demands(config, dict(compute), work, CUDA)
    beside = needs[graph].bytes
    kept = 0
    if graph == "transformer" and reuse:
        model = config.transformer
        depth = model.num_double_blocks + model.num_single_blocks
        tokens = work.references * work.width * work.height // (2 * config.autoencoder.downscale) ** 2
        kept = work.batch * depth * tokens * 2 * model.hidden_size * COMPUTE_BYTES[compute[graph]]
    # For other networks the backend has already tried to copy the linears one by one.
    least_held = offloaded(weights) if graph == "transformer" else streamed(config, graph, weights)
    whole = graph == "transformer" and not offload
    held = sum(weights.values()) if whole else least_held
    text = (
        f"out of GPU memory: {graph} takes about {gigabytes(held + beside + kept)} ({gigabytes(held)} of weights), and "
        f"{gigabytes(device.budget)} of {gigabytes(device.total)} are available; what would fit: "
    )
    suggestions = []
    if kept and held + beside <= device.budget:
        suggestions.append(f"no --reuse-reference (about {gigabytes(held + beside)})")
    if not offload:  # beside another network, it helps that the transformer's blocks leave the GPU
        swapped = least_held + beside + kept
        if swapped <= device.budget:
            suggestions.append(f"--offload (about {gigabytes(swapped)})")
    least = max(smallest(config, name, compute[name]) + needs[name].bytes for name in NETWORKS)
    if smallest(config, graph, compute[graph]) < sum(weights.values()) and least <= device.budget:
        suggestions.append(
            f"a bundle of kontext-export MODEL {fit_flags(config, work, device)} (from {gigabytes(least)} on)"
        )
    if graph in SIZED:
        suggestions.append("a smaller --size or fewer --num-images" if work.batch > 1 else "a smaller --size")
    elif not suggestions:
        suggestions.append("--device cpu")
    return text + ", or ".join(suggestions)


def fit_flags(config: KontextConfig, work: Workload, device: Device) -> str:
    """kontext-export's flags for a bundle that fits this edit. A picture larger than the model's square is given as a
    square with at least as many tokens."""
    side = 2 * config.autoencoder.downscale
    flags = [f"--fit {math.floor(device.budget / 1e8) / 10:g}GB"]
    if device.capability:
        flags.append(f"--gpu {sm_name(device.capability)}")
    pixels = work.width * work.height
    if pixels > config.autoencoder.sample_size**2:
        length = math.ceil(math.sqrt(pixels) / side) * side
        flags.append(f"--size {length}x{length}")
    if work.references > 1:
        flags.append(f"--references {work.references}")
    if work.batch > 1:
        flags.append(f"--batch {work.batch}")
    return " ".join(flags)


def tensor_bytes(bundle: Bundle, graph: str) -> dict[str, int]:
    """Tensor → bytes of a network's weights in a bundle."""
    header = read_header(bundle.graphs[graph].weights)
    return {name: entry.size for name, entry in header.tensors.items()}
