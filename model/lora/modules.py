"""The modules in a LoRA file, and the updates that each makes: from the header, and from alphas, single numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import KontextError
from ..networks import NetworkShapes
from ..safetensors_file import TensorInfo
from ..stored_numbers import is_zero, read_numbers
from .deltas import Delta, Fit, Whole, incomplete
from .names import Role, other_kind, split_name
from .settings import FileSettings, Settings, number
from .targets import TargetRows, resolve
from .update import Addition, Decomposed, Replacement, Update

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Number formats that factors may have."""

UPDATES: tuple[Role, ...] = ("diff", "diff_b", "set_weight")
"""Roles that are updates by themselves."""

SKIPPED = {
    r"bundle_emb\..*": "embeddings that OneTrainer bundles (bundle_emb) are not used: no prompt finds their words",
    r".*text_projection.*": "text_projection is not used: no network here has one",
}
"""Names of tensors that are left out → a note about it."""


@dataclass(frozen=True)
class LoraModule:
    """All tensors of a file for one module; `name` as in the file, without prefix."""

    component: str
    name: str
    tensors: dict[Role, TensorInfo]
    targets: tuple[TargetRows, ...]


@dataclass(frozen=True)
class Found:
    """A file's tensors by module, those that match nothing in the model, and notes on those that are left out."""

    modules: list[LoraModule]
    unmatched: list[str]
    notes: list[str]


def check_kind(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuses files that are no adapters, and adapters that cannot be fused."""
    roles = set()
    for name, info in tensors.items():
        if kind := other_kind(name):
            raise KontextError(f"{path} is {kind}, which is not supported: tensor {name}")
        role = split[1] if (split := split_name(name)) else None
        roles.add(role)
        if role in ("down", "up") and len(info.shape) > 2:
            raise KontextError(
                f"{path} is a convolution LoRA (LoCon), which is not supported: "
                f"tensor {name} {list(info.shape)}"
            )
        if re.fullmatch(r".*(?:scale_weight|weight_scale|scaled_fp8)", name):
            raise KontextError(
                f"{path} is a LoRA with scaled FP8 factors, which is not supported: tensor {name}"
            )
    if not roles - {None, "alpha", "scalar", "weight", "bias"}:
        raise KontextError(
            f"{path} is not a LoRA: none of its {len(tensors)} tensors is lora_A, lora_B, lora_down or lora_up"
        )


def find_modules(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    tables: Mapping[str, Mapping[str, tuple[TargetRows, ...]]],
    shapes: NetworkShapes,
    settings: FileSettings,
) -> Found:
    """Sorts the file's tensors by module."""
    # Some files hold everything twice, with diffusers' names and with kohya's; diffusers uses the first, too.
    twice = any(name.startswith("transformer.") for name in tensors)
    modules: dict[str, LoraModule] = {}
    unmatched, notes = [], []
    for name, info in tensors.items():
        if twice and name.startswith(("lora_unet_", "lora_transformer_")):
            notes.append(
                "tensors in kohya's names were left out: the file holds them again in diffusers' names"
            )
            continue
        if skipped := next((note for mark, note in SKIPPED.items() if re.fullmatch(mark, name)), None):
            notes.append(skipped)
            continue
        split = split_name(name)
        prefixed, role = split or (name, None)
        prefixed = prefixed.removesuffix(".base_layer")
        found = resolve(prefixed, tables)
        if found is None or role is None or not has_place(role, found, shapes, settings):
            unmatched.append(name)
            continue
        module = modules.setdefault(prefixed, LoraModule(found[0], found[1], {}, found[2]))
        if role in module.tensors:
            raise KontextError(f"{path} holds {prefixed} twice: {module.tensors[role].name} and {name}")
        if info.dtype not in FLOATS and not (role == "alpha" and info.dtype.startswith("I")):
            raise KontextError(f"{path}: tensor {name} is {info.dtype}, expected one of {', '.join(FLOATS)}")
        module.tensors[role] = info
    kept = [module for module in modules.values() if set(module.tensors) - {"alpha"}]
    alone = [module.tensors["alpha"].name for module in modules.values() if module not in kept]
    if alone:
        notes.append(f"alpha without factors was left out: {listed(alone)}")
    return Found(kept, unmatched, list(dict.fromkeys(notes)))


def without_zeros(found: Found, tensors: Mapping[str, TensorInfo]) -> Found:
    """`found` without those unmatched tensors that change nothing, since they are all zeros; reads the unmatched."""
    zeros = [name for name in found.unmatched if is_zero(tensors[name])]
    if not zeros:
        return found
    note = f"tensors that match no weight but are all zeros were left out: {listed(zeros)}"
    unmatched = [name for name in found.unmatched if name not in set(zeros)]
    return Found(found.modules, unmatched, [*found.notes, note])


def listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")


def has_place(
    role: Role, found: tuple[str, str, tuple[TargetRows, ...]], shapes: NetworkShapes, settings: FileSettings
) -> bool:
    """Whether a tensor fits its target's kind: factors need a linear, biases one that has a bias."""
    component, module, (target, *_) = found
    network, own = shapes[target.network], settings.components[component]
    if role in ("up_bias", "diff_b"):
        return target.bias in network
    if role == "bias":
        return target.bias in network and (own.saves_biases or own.saves(module))
    if role == "weight":
        # Black Forest Labs' control LoRAs hold the norms in full.
        return own.saves(module) or (component == "transformer" and len(network[target.weight]) == 1)
    return role in (*UPDATES, "alpha", "scalar") or len(network[target.weight]) > 1


def module_fit(path: Path, module: LoraModule, shapes: NetworkShapes) -> Fit:
    """What the tensors of one module have to fit: all rows of its targets."""
    first = module.targets[0]
    height = sum(target.rows.stop - target.rows.start for target in module.targets)
    return Fit(path, first.weight, (height, *shapes[first.network][first.weight][1:]))


def module_updates(
    module: LoraModule, delta: Delta | None, fit: Fit, weight: float, settings: Settings
) -> Iterator[tuple[str, str, Update]]:
    """(network, native weight, update) of one module, whose output rows are divided among its targets in order."""
    tensors, first, height = module.tensors, module.targets[0], fit.shape[0]
    rows = tuple(target.rows for target in module.targets)
    if delta is None:
        for role in ("magnitude", "dora_scale", "up_bias", "scalar"):
            if role in tensors:
                raise incomplete(fit, tensors[role], "lora_A (lora_down) and lora_B (lora_up)")
    else:
        scale = module_scale(fit.path, module, delta, settings)
        yield first.network, first.weight, delta_update(rows, delta, weight, scale, module, settings, fit)
        if (bias := tensors.get("up_bias")) is not None:
            fit.check(bias, (height,))
            yield first.network, first.bias, Addition(rows, Whole(bias), weight * scale)
    whole = {
        "diff": fit.shape,
        "set_weight": fit.shape,
        "weight": fit.shape,
        "diff_b": (height,),
        "bias": (height,),
    }
    for role, info in tensors.items():
        if role in whole:
            fit.check(info, whole[role])
            target = first.bias if role in ("diff_b", "bias") else first.weight
            if role in ("diff", "diff_b"):
                yield first.network, target, Addition(rows, Whole(info), weight)
            else:
                yield first.network, target, Replacement(rows, info)


def delta_update(
    rows: tuple[slice, ...],
    delta: Delta,
    weight: float,
    scale: float,
    module: LoraModule,
    settings: Settings,
    fit: Fit,
) -> Update:
    """The difference added, or as a DoRA."""
    height = fit.shape[0]
    magnitude, dora_scale = module.tensors.get("magnitude"), module.tensors.get("dora_scale")
    if magnitude is not None:
        fit.check(magnitude, (height,))
        return Decomposed(rows, delta, weight * scale, magnitude, "rows")
    if dora_scale is not None:
        norm_of: Literal["rows", "columns"] = "rows" if dora_scale.shape[:1] == (height,) else "columns"
        if norm_of == "columns":
            fit.check(dora_scale, (1, *fit.shape[1:]))
        elif len(dora_scale.shape) > 1:
            fit.check(dora_scale, (height, 1))
        return Decomposed(rows, delta, scale, dora_scale, norm_of, weight)
    if settings.peft.get("use_dora"):
        raise incomplete(fit, delta.tensor, f"lora_magnitude_vector, but {settings.where} says use_dora")
    return Addition(rows, delta, weight * scale)


LARGEST_SCALE = 3.4e38
"""That PyTorch multiplies in fp32 by."""


def module_scale(path: Path, module: LoraModule, delta: Delta, settings: Settings) -> float:
    """alpha / rank, or 1 without alpha; alpha / sqrt(rank) for rank-stabilized LoRAs (Kalajdzievski 2023).

    A LoKr without low-rank factors has no rank, and its alpha tensor no effect (LyCORIS, ComfyUI).
    """
    rank = delta.rank
    alpha: Any
    if (info := module.tensors.get("alpha")) is not None:
        alpha = read_number(path, info)
        alpha = 1 if rank is None else alpha
    else:
        alpha, rank = settings.alpha(module.name, rank)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or number(alpha) is None:
        raise KontextError(f"{path}: alpha of {module.name} is {alpha!r}, expected a number")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise KontextError(f"{path}: the rank of {module.name} is {rank!r}, expected a whole number")
    scale = alpha / (math.sqrt(rank or 1) if settings.peft.get("use_rslora") else rank or 1)
    if (scalar := module.tensors.get("scalar")) is not None:
        scale *= read_number(path, scalar)
    if not abs(scale) <= LARGEST_SCALE:
        raise KontextError(
            f"{path}: the scale of {module.name} is {scale:.4g}, expected a number of fp32's range"
        )
    return scale


def read_number(path: Path, info: TensorInfo) -> float:
    if math.prod(info.shape) != 1:
        raise KontextError(f"{path}: {info.name} has shape {list(info.shape)}, expected one number")
    return read_numbers(info)[0]
