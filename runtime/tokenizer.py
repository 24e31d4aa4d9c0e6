"""Prompts to token ids with the bundle's `tokenizers` files, padded or truncated to the encoders' fixed length."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import KontextError
from .bundle import TokenizerEntry

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PromptTokenizer:
    """One encoder's tokenizer; `encoder` is its name in messages."""

    def __init__(self, settings: TokenizerEntry, encoder: str) -> None:
        self.settings = settings
        self.encoder = encoder
        self.tokenizer = load_tokenizer(settings)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, int64 [len(prompts), max_length].

        Longer prompts are truncated before the end token, with a warning that says by how much. An empty prompt is
        allowed and gives only the special tokens. Both as in diffusers.

        Raises:
            KontextError: a prompt is not valid Unicode.
        """
        ids = np.full((len(prompts), self.settings.max_length), self.settings.pad_id, np.int64)
        for row, prompt in enumerate(prompts):
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError:  # bytes on the command line that are not UTF-8 become lone surrogates
                raise KontextError("the prompt is not valid Unicode text") from None
            encoding = self.tokenizer.encode(prompt)
            ids[row, : len(encoding.ids)] = encoding.ids
            lost = sum(len(part.ids) - sum(part.special_tokens_mask) for part in encoding.overflowing)
            if lost:
                warnings.warn(
                    f"the prompt is longer than {self.encoder}'s {self.settings.max_length} tokens: "
                    f"its last {lost} tokens are ignored there",
                    stacklevel=2,
                )
        return ids


def load_tokenizer(settings: TokenizerEntry) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(settings.path))
    except Exception as error:  # the library raises bare Exception
        raise KontextError(f"{settings.path} is not a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_length)
    return tokenizer
