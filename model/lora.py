"""Fuses LoRAs into the weights of a checkpoint while they are streamed one at a time.

updates, files = read_loras([(Path("style.safetensors"), 0.8)], shapes, config)  # reads headers only
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
from .few_steps import FewSteps, guess_steps
from .finite import is_finite
from .lora_names import OTHER_KINDS, Role, TargetRows, module_tables, resolve, split_name
from .networks import NetworkShapes
from .safetensors_file import TensorInfo, open_safetensors

FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats that a LoRA's factors may have."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Update:
    """A change to some output rows of one native weight: scale * up @ down, or scale * up if there is no `down`."""

    rows: slice
    scale: float
    up: TensorInfo
    up_rows: slice
    """The rows of `up` that belong to `rows`."""
    down: TensorInfo | None = None
    replaces: bool = False
    """`up` replaces the weight, whatever the scale: for the norms in Black Forest Labs' LoRAs."""

    def add_to(self, weight: Tensor) -> None:
        """Applies the change to `weight`, fp32 [out, ...], in place.

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
                f"{self.up.path}: {self.up.name} at scale {self.scale:g} overflows the weight that it is added to: the "
                "LoRA is damaged, or its weight is too large"
            )


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and what was used of it."""

    path: Path
    weight: float
    digest: str
    """SHA-256 of its header."""
    steps: FewSteps | None
    """That a distilled LoRA is made for, if its name says so."""
    updates: int
    unmatched: list[str]
    """Tensors that match no weight of the model; empty unless `partial` was set."""


@dataclass(frozen=True)
class LoraModule:
    """All tensors of a file for one module; `name` as in the file, without prefix."""

    component: str
    name: str
    tensors: dict[Role, TensorInfo]
    targets: tuple[TargetRows, ...]


def parse_lora_flag(text: str) -> tuple[Path, float]:
    """FILE[:weight] → file and weight, 1 by default; the file's name may contain colons too.

    Raises:
        KontextError: the weight is not a number, or there is no file name.
    """
    file, colon, number = text.rpartition(":")
    # Text that ends like a file name is not a weight: C:\style.safetensors, a:b.safetensors.
    if not colon or Path(text).exists() or number.lower().endswith((".safetensors", *PICKLES)):
        file, number = text, "1"
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not file or not math.isfinite(weight):
        raise KontextError(
            f"--lora {text}: {number!r} is not a weight: write FILE or FILE:WEIGHT, as in style.safetensors:0.8"
            if file
            else f"--lora {text!r} names no file: write FILE or FILE:WEIGHT, as in style.safetensors:0.8"
        )
    return Path(file), weight


def read_loras(
    requests: Sequence[tuple[Path, float]],
    shapes: NetworkShapes,
    config: KontextConfig,
    partial: bool = False,
) -> tuple[dict[str, dict[str, list[Update]]], list[LoraFile]]:
    """Finds the weights that LoRAs change; reads headers and scalar alphas, but no factors.

    Args:
        requests: files and their weights, applied in this order.
        shapes: of the model's weights.
        config: the model's sizes.
        partial: skip tensors that match no weight of the model, instead of raising an error.

    Returns:
        Network → native weight → its updates in order; and the files.

    Raises:
        KontextError: the first thing that is wrong.
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
                        raise KontextError(
                            f"{path} changes {name} twice, the second time by {update.up.name}"
                        )
                claimed[network, name].append(update.rows)
                updates.setdefault(network, {}).setdefault(name, []).append(update)
                count += 1
        files.append(LoraFile(path, weight, file.digest, guess_steps(path, file.metadata), count, unmatched))
    return updates, files


def check_file(path: Path) -> None:
    if not path.exists():
        raise KontextError(f"LoRA {path} does not exist: name a .safetensors file on this machine")
    if path.is_dir():
        raise KontextError(f"LoRA {path} is a folder: name the .safetensors file in it")
    if path.suffix.lower() in PICKLES:
        raise KontextError(
            f"LoRA {path} is a pickle, which can run code when opened, and is not read: if you trust it, convert it "
            "with safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
        )


def check_kind(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuses other kinds of adapters: only W + scale * up @ down can be fused."""
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
    tables: Mapping[str, Mapping[str, tuple[TargetRows, ...]]],
    shapes: NetworkShapes,
) -> tuple[list[LoraModule], list[str]]:
    """The file's tensors by module, and those that match nothing in the model."""
    # Some files hold everything twice, with diffusers' names and with kohya's; diffusers uses the first, too.
    twice = any(name.startswith("transformer.") for name in tensors)
    modules: dict[str, LoraModule] = {}
    unmatched = []
    for name, info in tensors.items():
        if twice and name.startswith(("lora_unet_", "lora_transformer_")):
            continue
        prefixed, role = split_name(name)
        found = resolve(prefixed, tables)
        if found is None or not has_place(role, found[2][0], shapes):
            unmatched.append(name)
            continue
        module = modules.setdefault(prefixed, LoraModule(found[0], found[1], {}, found[2]))
        if role in module.tensors:
            raise KontextError(f"{path} holds {prefixed} twice: {module.tensors[role].name} and {name}")
        if info.dtype not in FLOATS and not (role == "alpha" and info.dtype.startswith("I")):
            raise KontextError(f"{path}: tensor {name} is {info.dtype}, expected one of {', '.join(FLOATS)}")
        module.tensors[role] = info
    return list(modules.values()), unmatched


def has_place(role: Role, target: TargetRows, shapes: NetworkShapes) -> bool:
    """Whether a tensor fits its target: norms are replaced, linears are added to, and not every linear has a bias."""
    if role in ("bias", "diff_b"):
        return target.bias in shapes[target.network]
    return (role == "norm") == (len(shapes[target.network][target.weight]) == 1)


def unmatched_error(path: Path, unmatched: list[str], total: int, some: bool) -> KontextError:
    first = ", ".join(unmatched[:3]) + (", …" if len(unmatched) > 3 else "")
    if not some:
        return KontextError(
            f"{path} was made for another model: none of its tensors matches this one ({first})"
        )
    return KontextError(
        f"{path}: {len(unmatched)} of its {total} tensors match no weight of this model ({first}); "
        "--lora-partial fuses the others"
    )


def module_updates(
    path: Path, module: LoraModule, weight: float, settings: Mapping[str, Any], shapes: NetworkShapes
) -> Iterator[tuple[str, str, Update]]:
    """(network, native weight, update) of one module, whose output rows are divided among its targets in order."""
    tensors, first = module.tensors, module.targets[0]
    shape = shapes[first.network][first.weight]
    height = sum(target.rows.stop - target.rows.start for target in module.targets)
    down, up = tensors.get("down"), tensors.get("up")
    scale = 0.0
    if down and up:
        rank = down.shape[0] if down.shape else 0
        check_shapes(path, {down: (rank, *shape[1:]), up: (height, rank)}, first.weight, (height, *shape[1:]))
        if rank == 0:
            raise KontextError(f"{path}: tensor {down.name} has rank 0: the LoRA is empty or damaged")
        scale = weight * pair_scale(path, module, rank, settings)
    elif down or up or "alpha" in tensors or "bias" in tensors:
        lacking = "lora_A (lora_down)" if up else "lora_B (lora_up)"
        raise KontextError(
            f"{path}: tensor {(up or down or next(iter(tensors.values()))).name} has no {lacking}: the file is "
            "incomplete"
        )
    whole = {"bias": (height,), "diff": (height, *shape[1:]), "diff_b": (height,), "norm": shape}
    expected = {info: whole[role] for role, info in tensors.items() if role in whole}
    check_shapes(path, expected, first.weight, (height, *shape[1:]))
    start = 0
    for target in module.targets:
        own = slice(start, start + target.rows.stop - target.rows.start)
        start = own.stop
        if down and up:
            yield target.network, target.weight, Update(target.rows, scale, up, own, down)
        for role, info in tensors.items():
            if role in ("bias", "diff_b"):
                strength = scale if role == "bias" else weight
                yield target.network, target.bias, Update(target.rows, strength, info, own)
            elif role in ("diff", "norm"):
                replaces = role == "norm"
                update = Update(target.rows, weight, info, own, replaces=replaces)
                yield target.network, target.weight, update


def check_shapes(
    path: Path, expected: Mapping[TensorInfo, tuple[int, ...]], weight: str, shape: tuple[int, ...]
) -> None:
    for info, wanted in expected.items():
        if info.shape != wanted:
            raise KontextError(
                f"{path} was made for another model: tensor {info.name} is {list(info.shape)}, but "
                f"{weight} {list(shape)} needs {list(wanted)}"
            )


def pair_scale(path: Path, module: LoraModule, rank: int, settings: Mapping[str, Any]) -> float:
    """alpha / rank, or 1 without alpha; alpha / sqrt(rank) for rank-stabilized LoRAs (Kalajdzievski 2023)."""
    alpha: Any = rank
    info = module.tensors.get("alpha")
    prefix = f"{module.component}."
    # save_lora_weights prefixes each component's settings; save_lora_adapter writes the transformer's without prefix.
    own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    if not own and module.component == "transformer":
        own = dict(settings)
    if info is not None:
        if math.prod(info.shape) != 1:
            raise KontextError(f"{path}: {info.name} has shape {list(info.shape)}, expected one number")
        alpha = info.read().item()
    elif own:
        alpha = setting(path, own, "alpha_pattern", "lora_alpha", module.name, rank)
        promised = setting(path, own, "rank_pattern", "r", module.name, rank)
        if promised != rank:
            raise KontextError(
                f"{path}: {module.tensors['down'].name} has rank {rank}, but the metadata says {promised}: the file is "
                "damaged"
            )
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise KontextError(f"{path}: alpha of {module.name} is {alpha!r}, expected a number")
    return alpha / (math.sqrt(rank) if own.get("use_rslora") is True else rank)


def setting(path: Path, settings: Mapping[str, Any], pattern: str, name: str, module: str, other: int) -> Any:
    """PEFT's rule: the value of the first regular expression that matches the end of the module's name, else the
    default in the settings."""
    try:
        for expression, value in (settings.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({expression})$", module):
                return value
    except (AttributeError, re.error) as error:
        raise KontextError(f"{path}: {pattern} in its metadata is not valid: {error}") from None
    return settings.get(name, other)


def adapter_settings(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings, which diffusers writes from 0.34 on: r, lora_alpha, rank_pattern, alpha_pattern, …"""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    except (TypeError, ValueError, RecursionError) as error:
        raise KontextError(f"{path}: its lora_adapter_metadata is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise KontextError(f"{path}: its lora_adapter_metadata is not a JSON object")
    return settings


def read_finite(info: TensorInfo) -> Tensor:
    tensor = info.read().float()
    if not is_finite(tensor):
        raise KontextError(f"{info.path}: tensor {info.name} holds NaN or infinity: the LoRA is damaged")
    return tensor
