"""Reads LoRA files: from their headers, what each changes in a model.

updates, files = read_loras([(Path("style.safetensors"), 0.8)], shapes, config)  # reads headers only
for update in updates["transformer"].get("img_in.weight", []):
    update.apply_to(weight)  # reads the factors
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import KontextError
from ...lora_flag import PICKLES
from ..config import KontextConfig
from ..few_steps import FewSteps, guess_steps, unclear_steps
from ..networks import NetworkShapes
from ..safetensors_file import SafetensorsFile, open_safetensors
from ..source_names import source_name
from .deltas import find_delta
from .modules import check_kind, find_modules, module_fit, module_updates, without_zeros
from .names import split_name
from .settings import CONFIG_NAME, FileSettings, read_settings
from .targets import PREFIXES, module_tables
from .update import Update

FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers write into a folder."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and what was used of it."""

    path: Path
    weight: float
    digest: str
    """SHA-256 of its header, and of adapter_config.json beside it if there is one."""
    steps: FewSteps | None
    """That a distilled LoRA is made for, if its name says so."""
    updates: int
    unmatched: list[str]
    """Tensors that match no weight of the model; empty unless `partial` was set."""
    notes: list[str]
    """What else was left out of it, and what was taken from where."""

    @property
    def name(self) -> str:
        """As it is recorded and printed."""
        return source_name(self.path)


def read_loras(
    requests: Sequence[tuple[Path, float]],
    shapes: NetworkShapes,
    config: KontextConfig,
    partial: bool = False,
) -> tuple[dict[str, dict[str, list[Update]]], list[LoraFile]]:
    """Finds the weights that LoRAs change; reads headers and scalar alphas, but no factors.

    Args:
        requests: files or folders and their weights, applied in this order.
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
    for request, weight in requests:
        path, file, settings = open_lora(request)
        found = find_modules(path, file.tensors, tables, shapes, settings)
        if found.modules and found.unmatched and not partial:
            found = without_zeros(found, file.tensors)
        if not found.modules or (found.unmatched and not partial):
            raise unmatched_error(path, found.unmatched, len(file.tensors), bool(found.modules))
        notes = [*settings.notes, *found.notes]
        claimed: dict[tuple[str, str], list[slice]] = {}
        count = 0
        for module in found.modules:
            own = settings.components[module.component]
            fit = module_fit(path, module, shapes)
            delta = find_delta(module.tensors, fit)
            rank = None if delta is None else delta.rank
            if "alpha" not in module.tensors and (note := own.note(module.name, rank)):
                notes.append(note)
            for network, name, update in module_updates(module, delta, fit, weight, own):
                taken = claimed.setdefault((network, name), [])
                if any(old.start < new.stop and new.start < old.stop for old in taken for new in update.rows):
                    listed = ", ".join(info.name for info in module.tensors.values())
                    raise KontextError(f"{path} changes {name} twice, the second time by {listed}")
                taken += update.rows
                updates.setdefault(network, {}).setdefault(name, []).append(update)
                count += 1
        digest = file.digest
        if settings.config_digest:
            digest = hashlib.sha256(f"{digest} {settings.config_digest}".encode()).hexdigest()
        steps = guess_steps(path, file.metadata)
        if note := unclear_steps(path, file.metadata):
            notes.append(note)
        files.append(
            LoraFile(path, weight, digest, steps, count, found.unmatched, list(dict.fromkeys(notes)))
        )
    return updates, files


def open_lora(request: Path) -> tuple[Path, SafetensorsFile, FileSettings]:
    """The file of a LoRA, which may be given as its folder, its header and its settings.

    Raises:
        KontextError: there is none, it is damaged, or of a kind that is not supported.
    """
    path = find_file(request)
    file = open_safetensors(path)
    has_alphas = any((split := split_name(name)) and split[1] == "alpha" for name in file.tensors)
    settings = read_settings(path, file.metadata, tuple(PREFIXES), has_alphas)
    check_kind(path, file.tensors)
    return path, file, settings


def find_file(path: Path) -> Path:
    if not path.exists():
        raise KontextError(f"LoRA {path} does not exist: name a .safetensors file on this machine")
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        named = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if len(named or files) == 1:
            return (named or files)[0]
        if not files and (path / CONFIG_NAME).is_file():
            raise KontextError(
                f"LoRA {path} has {CONFIG_NAME} but no adapter_model.safetensors: save it with PEFT's "
                "save_pretrained(…, safe_serialization=True)"
            )
        held = f"holds {', '.join(file.name for file in files[:3])}" if files else "has none"
        raise KontextError(f"LoRA {path} is a folder: name the .safetensors file in it ({held})")
    if path.suffix.lower() in PICKLES:
        raise KontextError(
            f"LoRA {path} is a pickle, which can run code when opened, and is not read: if you trust it, convert it "
            "with safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
        )
    return path


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
