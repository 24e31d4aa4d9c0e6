"""Token ids against transformers on the same checkpoint."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from kontext.errors import KontextError
from kontext.runtime.bundle import Bundle, TokenizerEntry
from kontext.runtime.tokenizer import PromptTokenizer

PROMPTS = [
    "make the red circle blue",
    "",
    "Replace the letter A with the word KONTEXT, please: it's 42 pixels wide!",
    "make the circle red " * 40,
    "naïve café, 日本語, 🙂 end",
    "<|startoftext|>a<|endoftext|>",
]


@pytest.mark.parametrize(("name", "folder"), [("clip", "tokenizer"), ("t5", "tokenizer_2")])
def test_ids_are_those_of_transformers(
    tiny_bundle: Path, tiny_checkpoint: Path, name: str, folder: str
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    entry = Bundle.open(tiny_bundle).tokenizers[name]
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint / folder)
    expected = theirs(PROMPTS, padding="max_length", max_length=entry.max_length, truncation=True)[
        "input_ids"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = PromptTokenizer(entry, name)(PROMPTS)
    assert ids.dtype == np.int64
    assert ids.tolist() == expected


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_what_is_cut_is_counted_and_the_end_token_stays(tiny_bundle: Path, name: str) -> None:
    """Against the `tokenizers` library without a limit: every token beyond it is counted, special ones are not."""
    entry = Bundle.open(tiny_bundle).tokenizers[name]
    prompt = "make the circle red " * 40
    whole = Tokenizer.from_file(str(entry.path))
    whole.no_truncation()
    lost = len(whole.encode(prompt).ids) - entry.max_length
    message = f"longer than {name}'s {entry.max_length} tokens: its last {lost} tokens are ignored"
    with pytest.warns(UserWarning, match=message):
        ids = PromptTokenizer(entry, name)([prompt])
    assert ids[0, -1] == entry.eos_id


def test_padding_of_the_file_is_not_used(tiny_bundle: Path, tmp_path: Path) -> None:
    entry = Bundle.open(tiny_bundle).tokenizers["t5"]
    file = Tokenizer.from_file(str(entry.path))
    file.enable_padding(length=9, pad_id=7)
    file.save(str(tmp_path / "t5.json"))
    padded = PromptTokenizer(replace(entry, path=tmp_path / "t5.json"), "T5")(["make"])
    assert np.array_equal(padded, PromptTokenizer(entry, "T5")(["make"]))


def test_a_prompt_that_fits_needs_no_warning(tiny_bundle: Path) -> None:
    entry = Bundle.open(tiny_bundle).tokenizers["t5"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptTokenizer(entry, "T5")(["make", ""])


def test_a_prompt_that_is_not_unicode(tiny_bundle: Path) -> None:
    with pytest.raises(KontextError, match="not valid Unicode"):
        PromptTokenizer(Bundle.open(tiny_bundle).tokenizers["t5"], "T5")(["a\udcff"])


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(KontextError, match="is not a tokenizer"):
        PromptTokenizer(TokenizerEntry(tmp_path / "x.json", 8, 0, 1), "T5")
