"""tokenizer_config.json of a diffusers folder: what of it changes token ids is read, or refused.

The tokenizers themselves are read by an export only (`export.bundle.tokenizer_files`).
"""

from __future__ import annotations

from pathlib import Path

from .config import MOST_TOKENS
from .harmless_fields import TOKENIZER
from .json_fields import Fields

SIDES = ("padding_side", "truncation_side")
"""Fields that say where ids are added or cut off; a bundle's runtime does both at the end."""


def check_tokenizer_config(path: Path) -> None:
    """Raises KontextError for settings that would change ids, and warns of unknown ones."""
    if not path.exists():
        return
    fields = Fields(path)
    for name in SIDES:
        fields.require(name, "right", default="right")
    fields.require("split_special_tokens", False, default=False)
    fields.known.update(("model_max_length", "bos_token", "eos_token", "pad_token", "unk_token"))
    fields.warn_of_others(TOKENIZER)


def prompt_tokens(tokenizer_config: Path, default: int) -> int:
    """The tokenizer's limit; `default` if it is missing or huge (transformers' "no limit")."""
    if not tokenizer_config.exists():
        return default
    limit = Fields(tokenizer_config).get("model_max_length")
    return limit if type(limit) is int and 1 <= limit <= MOST_TOKENS else default
