"""Prompts to ids with the bundle's own `tokenizers` files, padded and cut to the encoders' fixed length."""

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
        self.tokenizer = load(settings)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """int64 [len(prompts), max_length].

        What does not fit is cut in front of the end token, with a warning that says how much, as diffusers does.
        An empty prompt is allowed, as there, and leaves only the special tokens.
        """
        ids = np.full((len(prompts), self.settings.max_length), self.settings.pad_id, np.int64)
        for row, prompt in enumerate(prompts):
            try:
                prompt.encode("utf-8")
            except (
                UnicodeEncodeError
            ):  # bytes of the command line that are no UTF-8 arrive as lone surrogates
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


def load(settings: TokenizerEntry) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(settings.path))
    except Exception as fault:  # the library raises bare Exception
        raise KontextError(f"{settings.path} is not a tokenizer: {fault}") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_length)
    return tokenizer
