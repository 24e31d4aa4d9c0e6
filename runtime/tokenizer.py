"""Prompts to token ids with the bundle's `tokenizers` files, padded or truncated to the encoders' fixed length."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import KontextError
from ..regular_files import read_regular
from .bundle import TokenizerEntry
from .tokenizer_file import Read, library_errors, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PromptTokenizer:
    """One encoder's tokenizer.

    Args:
        settings: of the bundle.
        encoder: its name in messages.
        read: reads its file; `Bundle.content` compares that of a bundle.
    """

    def __init__(self, settings: TokenizerEntry, encoder: str, read: Read = read_regular) -> None:
        self.settings = settings
        self.encoder = encoder
        self.tokenizer = limited(load_tokenizer(settings.path, read), settings)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, int64 [len(prompts), max_length].

        Longer prompts are truncated before the end token, with a warning that says by how much. An empty prompt is
        allowed and gives only the special tokens. Both as in diffusers.

        Raises:
            KontextError: a prompt is not valid Unicode, or the tokenizer fails.
        """
        ids = np.full((len(prompts), self.settings.max_length), self.settings.pad_id, np.int64)
        for row, prompt in enumerate(prompts):
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError:  # bytes on the command line that are not UTF-8 become lone surrogates
                raise KontextError("the prompt is not valid Unicode text") from None
            with library_errors(f"{self.settings.path} cannot read the prompt"):
                encoding = self.tokenizer.encode(prompt)
            if len(encoding.ids) > self.settings.max_length:  # a special token may stand for many
                raise KontextError(
                    f"{self.settings.path}: its special tokens leave no room in prompts of {self.settings.max_length}"
                )
            ids[row, : len(encoding.ids)] = encoding.ids
            lost = sum(len(part.ids) - sum(part.special_tokens_mask) for part in encoding.overflowing)
            if lost:
                warnings.warn(
                    f"the prompt is longer than {self.encoder}'s {self.settings.max_length} tokens: "
                    f"its last {lost} tokens are ignored there",
                    stacklevel=2,
                )
        return ids


def limited(tokenizer: Tokenizer, settings: TokenizerEntry) -> Tokenizer:
    """The tokenizer, cutting at `max_length` tokens. Raises KontextError if its special tokens leave no room there."""
    with library_errors(f"{settings.path} is not a tokenizer"):
        special = tokenizer.num_special_tokens_to_add(False)
        if special >= settings.max_length:
            raise KontextError(
                f"{settings.path}: its {special} special tokens leave no room in prompts of {settings.max_length}"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings.max_length)
    return tokenizer
