"""What a trainer says beside the tensors: PEFT's settings in adapter_config.json or the header, and the header's alpha.

A setting that changes what is fused is read or refused; one that nobody here knows is noted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...regular_files import MAX_JSON_BYTES, parse_json, read_regular

CONFIG_NAME = "adapter_config.json"

FUSED_TYPES = ("LORA", "LOHA", "LOKR")

READ = (
    *("peft_type", "r", "lora_alpha", "alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora"),
    *("init_lora_weights", "bias", "modules_to_save", "fan_in_fan_out"),
)

HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "rank_dropout", "module_dropout", "rank_dropout_scale", "runtime_config", "lora_bias"),
    *("megatron_config", "megatron_core", "eva_config", "corda_config", "loftq_config", "lora_ga_config"),
    *("velora_config", "qalora_group_size", "ensure_weight_tying", "init_weights", "decompose_both"),
    *("decompose_factor", "use_effective_conv2d", "adapter_name"),
)
"""Settings that only matter in training, or that the tensors show."""

REFUSED = {
    "layer_replication": "repeats layers",
    "alora_invocation_tokens": "is an aLoRA (active only after some tokens)",
    "trainable_token_indices": "trains single tokens",
    "target_parameters": "adapts parameters that are no linears",
    "use_qalora": "is a QALoRA (pooled inputs)",
    "use_bdlora": "is a BD-LoRA (block-diagonal)",
    "arrow_config": "routes between adapters (Arrow)",
    "kasa_config": "is a KaSA (changes the base weights)",
    "monteclora_config": "is a MonteCLoRA",
}
"""Settings of other methods → what the file then is or does."""

FLAGS = (
    *("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "inference_mode"),
    *("ensure_weight_tying", "rank_dropout_scale", "decompose_both", "use_effective_conv2d"),
)
"""Settings that are true or false. PEFT takes any text, "no" too, for true: text and numbers are refused here."""

PEFT_DEFAULT = 8
"""PEFT's r, lora_alpha (of a LoRA) and alpha (of a LoHa or LoKr), where a file's settings leave them out."""

KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Initializations that leave the base weights as they are, beside true and false."""

ALPHA_KEYS = ("lora_alpha", "network_alpha", "alpha")
RANK_KEYS = ("r", "rank", "lora_rank", "network_dim")


@dataclass(frozen=True)
class Settings:
    """The settings of one component of a file."""

    path: Path
    where: str
    """What they were read from, for messages."""
    peft: Mapping[str, Any] = field(default_factory=dict)
    header_alpha: float | None = None
    header_rank: float | None = None

    def alpha(self, module: str, rank: int | None) -> tuple[Any, int | None]:
        """Alpha and rank of a module whose file has no alpha tensor for it; equal where the scale is 1.

        Args:
            module: its name without prefix.
            rank: of its factors; None for a LoKr without low-rank factors.

        Raises:
            KontextError: the factors have another rank than the settings say.
        """
        if self.peft:
            alpha, promised = self.value(self.alpha_name, module), self.value("r", module)
            if rank is not None and promised != rank:
                default = "r" not in self.peft and promised == PEFT_DEFAULT
                raise KontextError(
                    f"{self.path}: the factors of {module} have rank {rank}, but {self.where} "
                    + (f"has no r, so that PEFT takes {promised}" if default else f"says {promised!r}")
                    + ": the file is damaged"
                )
            return alpha, promised if rank is None else rank  # PEFT, unlike LyCORIS, scales a full LoKr, too
        if self.header_alpha is not None and rank is not None and self.header_rank in (None, rank):
            return self.header_alpha, rank
        return (rank, rank) if rank is not None else (1, 1)

    @property
    def alpha_name(self) -> str:
        return "lora_alpha" if peft_kind(self.peft) == "LORA" else "alpha"

    def value(self, name: str, module: str) -> Any:
        """`r` or alpha of a module by PEFT's rule: its pattern's, else the settings' own, else PEFT's default."""
        own = self.pattern("rank_pattern" if name == "r" else "alpha_pattern", module)
        return self.peft.get(name, PEFT_DEFAULT) if own is None else own

    def pattern(self, pattern: str, module: str) -> Any:
        """The value of the first regular expression that matches the end of the module's name; None if none does."""
        try:
            for expression, value in (self.peft.get(pattern) or {}).items():
                if re.match(rf"(.*\.)?({expression})$", module):
                    return value
        except (AttributeError, re.error) as error:
            raise KontextError(f"{self.path}: {pattern} in {self.where} is not valid: {error}") from None
        return None

    def saves(self, module: str) -> bool:
        """Whether the file holds weights of `module` in full, to replace the model's."""
        names = self.peft.get("modules_to_save")
        return isinstance(names, list) and any(f".{name}." in f".{module}." for name in names)

    @property
    def saves_biases(self) -> bool:
        return self.peft.get("bias") in ("all", "lora_only")

    def note(self, module: str, rank: int | None) -> str | None:
        """What a reader should know about a module without alpha tensor."""
        if self.peft:
            patterns = {"r": "rank_pattern", self.alpha_name: "alpha_pattern"}
            missing = [
                name
                for name, pattern in patterns.items()
                if name not in self.peft and self.pattern(pattern, module) is None
            ]
            if not missing:
                return None
            return (
                f"{self.where} has no {' and no '.join(missing)}: PEFT's default of {PEFT_DEFAULT} was taken"
            )
        if self.header_alpha is None or rank is None:
            return None
        if self.header_rank not in (None, rank):
            return (
                f"alpha {self.header_alpha:g} in the header is for rank {self.header_rank:g} and was not applied to "
                "factors of another rank"
            )
        return (
            f"alpha {self.header_alpha:g} from the header: the factors of rank {rank} are multiplied by "
            f"{self.header_alpha / rank:g}"
        )


@dataclass(frozen=True)
class FileSettings:
    """The settings of a file, for all of its components."""

    components: Mapping[str, Settings]
    notes: tuple[str, ...]
    config_digest: str = ""
    """SHA-256 of adapter_config.json, if it was read."""


def read_settings(
    path: Path, metadata: Mapping[str, Any], components: tuple[str, ...], has_alphas: bool
) -> FileSettings:
    """The settings of the adapter `path`.

    Args:
        metadata: the header's.
        components: those that an adapter may change.
        has_alphas: whether the file has alpha tensors, beside which alpha in the header says the same again.

    Raises:
        KontextError: they are damaged, or ask for what cannot be fused.
    """
    config, digest, notes = read_config(path)
    if digest:
        settings = Settings(path, CONFIG_NAME, {"peft_type": "LORA"} | config)
        notes += check_peft(settings)
        return FileSettings(dict.fromkeys(components, settings), tuple(notes), digest)
    found = read_json(path, "its lora_adapter_metadata", metadata.get("lora_adapter_metadata") or "{}")
    result = {}
    # save_lora_weights prefixes each component's settings; save_lora_adapter writes the transformer's without prefix.
    prefixed = any(key.startswith(f"{component}.") for key in found for component in components)
    for component in components:
        prefix = f"{component}."
        own = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        if not prefixed and component == "transformer":
            own = found
        settings = Settings(path, "its metadata", own)
        if own:
            notes += check_peft(settings)
        elif not has_alphas:
            settings, own_notes = read_header(path, metadata, component)
            notes += own_notes
        result[component] = settings
    if not has_alphas and "ss_network_alpha" in metadata and not found:
        notes.append(
            f"ss_network_alpha {metadata['ss_network_alpha']} in the header was not applied: kohya's alphas are "
            "tensors, and this file has none, as after a conversion that multiplies them in"
        )
    return FileSettings(result, tuple(dict.fromkeys(notes)), digest)


def read_config(path: Path) -> tuple[dict[str, Any], str, list[str]]:
    """adapter_config.json beside a PEFT adapter, the SHA-256 of it, and notes."""
    config = path.with_name(CONFIG_NAME)
    if not config.is_file():
        return {}, "", []
    if path.name != "adapter_model.safetensors" and len(list(path.parent.glob("*.safetensors"))) > 1:
        return {}, "", [f"{CONFIG_NAME} in the same folder was not read: it is adapter_model.safetensors'"]
    try:
        text = read_regular(config, MAX_JSON_BYTES, "PEFT's settings")
    except OSError as error:
        raise KontextError(f"cannot read {config}: {error.strerror}") from None
    return read_json(config, "", text), hashlib.sha256(text).hexdigest(), []


def read_json(path: Path, what: str, text: str | bytes) -> dict[str, Any]:
    subject = f"{path}: {what}" if what else str(path)
    try:
        found = parse_json(text)
    except (AttributeError, TypeError, ValueError) as error:
        raise KontextError(f"{subject} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise KontextError(f"{subject} is not a JSON object")
    return found


def check_peft(settings: Settings) -> list[str]:
    """Refuses what cannot be fused; notes about settings that have no effect here."""
    path, where, values = settings.path, settings.where, settings.peft
    kind = peft_kind(values)
    if kind not in FUSED_TYPES:
        raise KontextError(
            f"{path} is of PEFT's type {' '.join(kind.split()):.40}, which is not supported: {where}"
        )
    for name in FLAGS:
        if not isinstance(value := values.get(name), (bool, type(None))):
            text = json.dumps(value, ensure_ascii=False)
            raise KontextError(f"{path}: {name} in {where} is {text:.60}, expected true or false")
    for name, what in REFUSED.items():
        if values.get(name):
            raise KontextError(f"{path} {what}, which is not supported: {name} in {where}")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in KEEPS_BASE:
        raise KontextError(
            f"{path} was trained from changed base weights (init_lora_weights {start!r} in {where}): convert it with "
            "PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    notes = []
    if values.get("fan_in_fan_out"):
        notes.append(f"fan_in_fan_out in {where} has no effect on linears")
    unknown = [name for name, value in values.items() if value and name not in (*READ, *HARMLESS, *REFUSED)]
    if unknown:
        notes.append(f"not read in {where}: {', '.join(unknown)}")
    return notes


def peft_kind(values: Mapping[str, Any]) -> str:
    return str(values.get("peft_type") or "LORA").upper()


def read_header(path: Path, metadata: Mapping[str, Any], component: str) -> tuple[Settings, list[str]]:
    """Alpha and rank that are only in the header, plain or after the component's name."""

    def values(keys: tuple[str, ...]) -> dict[str, Any]:
        own = {key: metadata[f"{component}.{key}"] for key in keys if f"{component}.{key}" in metadata}
        return own or {key: metadata[key] for key in keys if key in metadata}

    alphas, ranks = values(ALPHA_KEYS), values(RANK_KEYS)
    if not alphas:
        return Settings(path, "its header"), []
    bad = [f"{key} is {value!r:.60}" for key, value in (alphas | ranks).items() if number(value) is None]
    if bad:
        return Settings(path, "its header"), [
            f"alpha in the header was not applied: {', '.join(bad)}, which is not a number"
        ]
    numbers = {number(value) for value in alphas.values()}, {number(value) for value in ranks.values()}
    if len(numbers[0]) > 1 or len(numbers[1]) > 1:
        listed = ", ".join(f"{key} {value}" for key, value in (alphas | ranks).items())
        return Settings(path, "its header"), [
            f"alpha in the header is ambiguous and was not applied: {listed}"
        ]
    rank = next(iter(numbers[1]), None)
    return Settings(path, "its header", {}, next(iter(numbers[0])), rank), []


def number(value: Any) -> float | None:
    """`value`, which may be text, as a finite number; None if it is none."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None
