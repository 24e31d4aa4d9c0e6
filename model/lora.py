"""LoRAs, fused into the weights of a checkpoint while these are streamed one at a time.

updates, files = read_loras([(Path("style.safetensors"), 0.8)], shapes, config)  # headers only
for update in updates["transformer"].get("img_in.weight", []):
    update.add_to(weight)  # reads the two factors
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import KontextError
from .config import KontextConfig
from .finite import is_finite
from .lora_names import OTHER_KINDS, Part, Target, guess_steps, module_tables, resolve, split_name
from .safetensors_file import TensorInfo, open_safetensors

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Network → native weight → shape."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats that the factors of a LoRA may be in."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Update:
    """A change to some output rows of one native weight: scale * up @ down, or `up` itself where there is no
    `down`."""

    rows: slice
    scale: float
    up: TensorInfo
    up_rows: slice
    """The rows of `up` that are added to `rows`."""
    down: TensorInfo | None = None
    replaces: bool = False
    """`up` takes the place of the weight, whatever the scale: the norms of Black Forest Labs' own LoRAs."""

    def add_to(self, weight: Tensor) -> None:
        """Changes `weight`, fp32 [out, ...], in place.

        Raises:
            KontextError: a factor cannot be read or holds NaN or infinity, or the sum overflows.
        """
        rows = weight[self.rows]
        up = read_finite(self.up)[self.up_rows].to(weight.device)
        if self.replaces:
            rows.copy_(up)
        elif self.down is None:
            rows.add_(up, alpha=self.scale)
        else:
            rows.addmm_(up, read_finite(self.down).to(weight.device), alpha=self.scale)
        if not is_finite(rows):
            raise KontextError(
                f"{self.up.path}: {self.up.name} at scale {self.scale:g} overflows the weight it is added to: "
                "the LoRA is damaged, or its weight is too large"
            )


@dataclass(frozen=True)
class LoraFile:
    """What was taken from one file."""

    path: Path
    weight: float
    digest: str
    """SHA-256 of the file's header."""
    steps: int | None
    """Sampling steps that a distilled LoRA was made for, where its name tells."""
    updates: int
    unmatched: list[str]
    """Tensors that belong to no weight of the model; none unless asked for with `partial`."""


@dataclass(frozen=True)
class Module:
    """All that a file holds about one module: `name` as the trainer spells it, with no prefix."""

    component: str
    name: str
    parts: dict[Part, TensorInfo]
    targets: tuple[Target, ...]


def parse_request(text: str) -> tuple[Path, float]:
    """FILE[:weight] → file and weight, 1 unless given; a colon may also be part of the file's name.

    Raises:
        KontextError: the weight is no number, or there is no file name.
    """
    file, colon, number = text.rpartition(":")
    # Nothing that ends in a file name is a weight: C:\style.safetensors, a:b.safetensors.
    if not colon or Path(text).exists() or number.lower().endswith((".safetensors", *PICKLES)):
        file, number = text, "1"
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not file or not math.isfinite(weight):
        raise KontextError(
            f"--lora {text}: {number!r} is no weight: write FILE or FILE:WEIGHT, as in style.safetensors:0.8"
            if file
            else f"--lora {text!r} names no file: write FILE or FILE:WEIGHT, as in style.safetensors:0.8"
        )
    return Path(file), weight


def read_loras(
    requests: Sequence[tuple[Path, float]], shapes: Shapes, config: KontextConfig, partial: bool = False
) -> tuple[dict[str, dict[str, list[Update]]], list[LoraFile]]:
    """Finds the weights that LoRAs change; reads their headers and scalar alphas, no factor.

    Args:
        requests: files and their weights, applied in this order.
        shapes: network → native weight → shape.
        config: the model's sizes.
        partial: tensors that belong to no weight of the model are left out instead of refused.

    Returns:
        network → native weight → its updates in order; and what was read, file by file.

    Raises:
        KontextError: the one thing that is wrong, in the user's words.
    """
    tables = module_tables(shapes, config.transformer)
    updates: dict[str, dict[str, list[Update]]] = {}
    files = []
    for path, weight in requests:
        check_file(path)
        file = open_safetensors(path)
        check_kind(path, file.tensors)
        modules, unmatched = find_modules(path, file.tensors, tables, shapes)
        if not modules or (unmatched and not partial):
            raise unmatched_error(path, unmatched, len(file.tensors), bool(modules))
        settings = adapter_settings(path, file.metadata)
        claimed: dict[tuple[str, str], list[slice]] = {}
        count = 0
        for module in modules:
            for network, name, update in module_updates(path, module, weight, settings, shapes):
                for rows in claimed.setdefault((network, name), []):
                    if rows.start < update.rows.stop and update.rows.start < rows.stop:
                        raise KontextError(f"{path} changes {name} twice, under two names: {update.up.name}")
                claimed[network, name].append(update.rows)
                updates.setdefault(network, {}).setdefault(name, []).append(update)
                count += 1
        files.append(LoraFile(path, weight, file.digest, guess_steps(path, file.metadata), count, unmatched))
    return updates, files


def check_file(path: Path) -> None:
    if not path.exists():
        raise KontextError(f"LoRA {path} is missing: name a .safetensors file on this machine")
    if path.is_dir():
        raise KontextError(f"LoRA {path} is a folder: name the .safetensors file in it")
    if path.suffix.lower() in PICKLES:
        raise KontextError(
            f"LoRA {path} is a pickle, which can run code when opened, and is not read: convert it where you "
            "trust it, safetensors.torch.save_file(torch.load(FILE, weights_only=True), …)"
        )


def check_kind(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Only sums W + scale * up @ down can be fused here: other adapters are refused, not taken for one."""
    for name, info in tensors.items():
        for mark, kind in OTHER_KINDS.items():
            if mark in name:
                raise KontextError(f"{path} is {kind}, which is not supported: tensor {name}")
        if split_name(name)[1] in ("down", "up") and len(info.shape) > 2:
            raise KontextError(
                f"{path} is a convolution LoRA (LoCon), which is not supported: "
                f"tensor {name} {list(info.shape)}"
            )
    if not any(split_name(name)[1] in ("down", "up", "diff", "diff_b") for name in tensors):
        raise KontextError(
            f"{path} is not a LoRA: none of its {len(tensors)} tensors is lora_A, lora_B, lora_down or lora_up"
        )


def find_modules(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    tables: Mapping[str, Mapping[str, tuple[Target, ...]]],
    shapes: Shapes,
) -> tuple[list[Module], list[str]]:
    """The file's tensors by module; and those that belong to nothing in the model."""
    # Some files hold everything twice, in diffusers' names and in kohya's; diffusers takes the first, too.
    twice = any(name.startswith("transformer.") for name in tensors)
    modules: dict[str, Module] = {}
    unmatched = []
    for name, info in tensors.items():
        if twice and name.startswith(("lora_unet_", "lora_transformer_")):
            continue
        prefixed, part = split_name(name)
        found = resolve(prefixed, tables)
        if found is None or not has_place(part, found[2][0], shapes):
            unmatched.append(name)
            continue
        module = modules.setdefault(prefixed, Module(found[0], found[1], {}, found[2]))
        if part in module.parts:
            raise KontextError(f"{path} holds {prefixed} twice: {module.parts[part].name} and {name}")
        if info.dtype not in FLOATS and not (part == "alpha" and info.dtype.startswith("I")):
            raise KontextError(f"{path}: tensor {name} is {info.dtype}, expected one of {', '.join(FLOATS)}")
        module.parts[part] = info
    return list(modules.values()), unmatched


def has_place(part: Part, target: Target, shapes: Shapes) -> bool:
    """Norms are replaced and linears are added to, never the other way; and not every linear has a bias."""
    if part in ("bias", "diff_b"):
        return target.bias in shapes[target.network]
    return (part == "norm") == (len(shapes[target.network][target.weight]) == 1)


def unmatched_error(path: Path, unmatched: list[str], total: int, some: bool) -> KontextError:
    first = ", ".join(unmatched[:3]) + (", …" if len(unmatched) > 3 else "")
    if not some:
        return KontextError(f"{path} was made for another model: none of its tensors belongs here ({first})")
    return KontextError(
        f"{path}: {len(unmatched)} of its {total} tensors belong to no weight of this model ({first}); "
        "--lora-partial fuses the others"
    )


def module_updates(
    path: Path, module: Module, weight: float, settings: Mapping[str, Any], shapes: Shapes
) -> Iterator[tuple[str, str, Update]]:
    """(network, native weight, update) of one module, whose output rows are spread over its targets in
    order."""
    parts, first = module.parts, module.targets[0]
    shape = shapes[first.network][first.weight]
    height = sum(target.rows.stop - target.rows.start for target in module.targets)
    down, up = parts.get("down"), parts.get("up")
    scale = 0.0
    if down and up:
        rank = down.shape[0] if down.shape else 0
        check_shapes(path, {down: (rank, *shape[1:]), up: (height, rank)}, first.weight, (height, *shape[1:]))
        if rank == 0:
            raise KontextError(f"{path}: tensor {down.name} has rank 0: the LoRA is empty or damaged")
        scale = weight * pair_scale(path, module, rank, settings)
    elif down or up or "alpha" in parts or "bias" in parts:
        lacking = "lora_A (lora_down)" if up else "lora_B (lora_up)"
        raise KontextError(
            f"{path}: tensor {(up or down or next(iter(parts.values()))).name} has no {lacking} beside it: "
            "the file is incomplete"
        )
    whole = {"bias": (height,), "diff": (height, *shape[1:]), "diff_b": (height,), "norm": shape}
    expected = {info: whole[part] for part, info in parts.items() if part in whole}
    check_shapes(path, expected, first.weight, (height, *shape[1:]))
    start = 0
    for target in module.targets:
        own = slice(start, start + target.rows.stop - target.rows.start)
        start = own.stop
        if down and up:
            yield target.network, target.weight, Update(target.rows, scale, up, own, down)
        for part, info in parts.items():
            if part in ("bias", "diff_b"):
                strength = scale if part == "bias" else weight
                yield target.network, target.bias, Update(target.rows, strength, info, own)
            elif part in ("diff", "norm"):
                replaces = part == "norm"
                update = Update(target.rows, weight, info, own, replaces=replaces)
                yield target.network, target.weight, update


def check_shapes(
    path: Path, expected: Mapping[TensorInfo, tuple[int, ...]], weight: str, shape: tuple[int, ...]
) -> None:
    for info, wanted in expected.items():
        if info.shape != wanted:
            raise KontextError(
                f"{path} was made for another model: tensor {info.name} is {list(info.shape)}, where "
                f"{weight} {list(shape)} asks for {list(wanted)}"
            )


def pair_scale(path: Path, module: Module, rank: int, settings: Mapping[str, Any]) -> float:
    """alpha / rank, 1 where nothing says alpha; alpha / sqrt(rank) of rank-stabilized LoRAs (Kalajdzievski
    2023)."""
    alpha: Any = rank
    info = module.parts.get("alpha")
    prefix = f"{module.component}."
    # save_lora_weights prefixes each component's settings, save_lora_adapter has the transformer's alone.
    own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    if not own and module.component == "transformer":
        own = dict(settings)
    if info is not None:
        if math.prod(info.shape) != 1:
            raise KontextError(f"{path}: {info.name} should be one number, its shape is {list(info.shape)}")
        alpha = info.read().item()
    elif own:
        alpha = setting(path, own, "alpha_pattern", "lora_alpha", module.name, rank)
        promised = setting(path, own, "rank_pattern", "r", module.name, rank)
        if promised != rank:
            raise KontextError(
                f"{path}: {module.parts['down'].name} has rank {rank}, its metadata says {promised}: "
                "one of them is damaged"
            )
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise KontextError(f"{path}: alpha of {module.name} is {alpha!r}, expected a number")
    return alpha / (math.sqrt(rank) if own.get("use_rslora") is True else rank)


def setting(path: Path, settings: Mapping[str, Any], pattern: str, name: str, module: str, other: int) -> Any:
    """PEFT's rule: the first regular expression that matches the end of the module's name, else the common
    value."""
    try:
        for expression, value in (settings.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({expression})$", module):
                return value
    except (AttributeError, re.error) as fault:
        raise KontextError(f"{path}: {pattern} of its metadata cannot be read: {fault}") from None
    return settings.get(name, other)


def adapter_settings(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings, which diffusers writes since 0.34: r, lora_alpha, rank_pattern, alpha_pattern, …"""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    except (TypeError, ValueError, RecursionError) as fault:
        raise KontextError(f"{path}: its lora_adapter_metadata is not JSON: {fault}") from None
    if not isinstance(settings, dict):
        raise KontextError(f"{path}: its lora_adapter_metadata should hold a JSON object")
    return settings


def read_finite(info: TensorInfo) -> Tensor:
    tensor = info.read().float()
    if not is_finite(tensor):
        raise KontextError(f"{info.path}: tensor {info.name} holds NaN or infinity: the LoRA is damaged")
    return tensor
