"""A pipeline's tokenizers as files that transformers 4 and 5 both read, whichever of them wrote MODEL's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ...model.checkpoint import Checkpoint
from ..bundle.tokenizer_files import CLIP_SPECIAL, T5_SPECIAL, read_tokenizers, special_token
from .diffusers import TOKENIZERS, json_bytes

CLASSES = {"tokenizer": "CLIPTokenizerFast", "tokenizer_2": "T5TokenizerFast"}
"""Folder → transformers' class, which reads tokenizer.json alone."""

SPECIAL = {"tokenizer": CLIP_SPECIAL, "tokenizer_2": T5_SPECIAL}

FURTHER = {"tokenizer": {}, "tokenizer_2": {"extra_ids": 0}}
"""Folder → further settings. All of T5's tokens are in tokenizer.json; transformers 4 would add a hundred."""


def portable_tokenizers(checkpoint: Checkpoint) -> dict[str, Callable[[], bytes]]:
    """Path in the pipeline's folder → what makes the file.

    Raises:
        KontextError: a tokenizer is missing or damaged, or does not fit its text encoder.
    """
    files: dict[str, Callable[[], bytes]] = {}
    read = read_tokenizers(checkpoint)
    for folder, name in TOKENIZERS.items():
        tokenizer = read[name]
        files[f"{folder}/tokenizer.json"] = tokenizer.text.encode
        settings = {
            "model_max_length": tokenizer.max_length,
            "tokenizer_class": CLASSES[folder],
            **FURTHER[folder],
            **special_tokens(checkpoint.tokenizer_folder(folder), SPECIAL[folder]),
        }
        files[f"{folder}/tokenizer_config.json"] = partial(json_bytes, settings)
    return files


def special_tokens(folder: Path, defaults: Mapping[str, str]) -> dict[str, str]:
    """Field of tokenizer_config.json → token."""
    return {
        f"{role}_token": special_token(folder, f"{role}_token", token) for role, token in defaults.items()
    }
