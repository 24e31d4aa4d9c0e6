"""Tokenizer files from anyone: what could take any time or memory is refused, and panics are errors."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.runtime.bundle import Bundle, TokenizerEntry
from kontext.runtime.tokenizer import PromptTokenizer
from kontext.runtime.tokenizer_file import (
    growth_of,
    is_plain,
    library_errors,
    load_tokenizer,
    longest_replacement,
)

Change = Callable[[dict[str, Any]], object]


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


def charsmap(*texts: str) -> str:
    blob = b"".join(text.encode() + b"\0" for text in texts)
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + blob).decode()


def sequence(*steps: dict[str, Any]) -> Change:
    return lambda root: root.update(normalizer={"type": "Sequence", "normalizers": list(steps)})


def split(regex: str) -> Change:
    part = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return lambda root: root.update(pre_tokenizer=part)


def byte_levels(count: int) -> Change:
    part = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return lambda root: root.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [part] * count})


def special_tokens(count: int) -> Change:
    part = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return lambda root: root["post_processor"].update(
        single=[{"Sequence": {"id": "A", "type_id": 0}}, *[part] * count]
    )


def long_piece(text: str) -> Change:
    return lambda root: root["model"]["vocab"].append([text, -1.0])


HOSTILE: dict[str, tuple[Change, str]] = {
    "a text 64 times as long, five times": (sequence(*[replace("b" * 64)] * 5), "as long"),
    "one long replacement": (sequence(replace("b" * 65)), "as long"),
    "between any two characters": (sequence(replace("b" * 64, Regex="x*")), "as long"),
    "a long prefix": (sequence({"type": "Prepend", "prepend": "x" * 64}), "as long"),
    "a long text in a character map": (
        sequence({"type": "Precompiled", "precompiled_charsmap": charsmap("a", "b" * 65)}),
        "as long",
    ),
    "bytes of bytes": (byte_levels(4), "as long"),
    "many steps": (sequence(*[{"type": "NFC"}] * 33), "more than 32 steps"),
    "an exponential pattern": (split(r"(a|aa|a)+b(?=c)\1"), "may take forever"),
    "a repeated group": (sequence(replace("b", Regex="(x+x+)+y")), "may take forever"),
    "a long pattern": (split("a" * 1001), "may take forever"),
    "a piece as long as a book": (long_piece("x" * 600_000), "a piece of more than 1,000 characters"),
    "a long piece with escapes": (long_piece('"' * 1001), "a piece of more than 1,000 characters"),
    "600 special tokens": (special_tokens(600), "special tokens leave no room"),
    "a special token of 600": (
        lambda root: root["post_processor"]["special_tokens"]["</s>"].update(
            ids=[1] * 600, tokens=["</s>"] * 600
        ),
        "special tokens leave no room",
    ),
    "another model": (lambda root: root["model"].update(type="Trigram"), "is not a tokenizer"),
    "no unknown token": (lambda root: root["model"].update(unk_id=10**6), ""),
}


def changed(tiny_bundle: Path, folder: Path, change: Change, name: str = "t5") -> TokenizerEntry:
    entry = Bundle.open(tiny_bundle).tokenizers[name]
    root = json.loads(entry.path.read_text())
    change(root)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(root))
    return TokenizerEntry(path, entry.max_length, entry.pad_id, entry.eos_id)


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_tokenizers_are_one_line(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    entry = changed(tiny_bundle, tmp_path, change)
    with pytest.raises(KontextError) as caught:
        PromptTokenizer(entry, "T5")(["a aaaa \N{SNOWMAN} b"])
    assert message in str(caught.value)
    assert str(entry.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_piece_of_the_longest_length_is_read(tiny_bundle: Path, tmp_path: Path) -> None:
    PromptTokenizer(changed(tiny_bundle, tmp_path, long_piece("x" * 1000)), "T5")(["x" * 20])


def test_a_panic_is_an_error_and_an_interrupt_is_none() -> None:
    class PanicException(BaseException):  # as pyo3 names it
        pass

    with pytest.raises(KontextError, match="x: index out of bounds"), library_errors("x"):
        raise PanicException("index out\nof bounds")
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), library_errors("x"):
            raise error


def test_a_real_panic(tiny_bundle: Path, tmp_path: Path) -> None:
    """A regular expression that gives up while it is matched, in a file that is read past its checks."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file(str(Bundle.open(tiny_bundle).tokenizers["t5"].path))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a|aa|a)+b(?=c)\1"), "isolated")
    with pytest.raises(KontextError, match="x: "), library_errors("x"):
        tokenizer.encode("a" * 60)


def test_a_vocabulary_of_millions_is_not_built(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "Unigram", "vocab": [' + '["a",0],' * 600_000 + '["a",0]]}}')
    with pytest.raises(KontextError, match="more than 1,000,000 values"):
        load_tokenizer(path)


def test_a_fifo_is_no_tokenizer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(KontextError, match="is not a regular file"):
        load_tokenizer(tmp_path / "fifo")


def test_growths() -> None:
    assert growth_of(replace("bb")) == 2
    assert growth_of(replace("bbb", String="aa")) == 2
    assert growth_of(replace("")) == 1
    assert growth_of(replace(" ", Regex=" {2,}")) == 2
    assert growth_of({"type": "Prepend", "prepend": "▁"}) == 2
    assert growth_of({"type": "NFKC"}) == 1
    assert longest_replacement(base64.b64decode(charsmap("ab", "\N{SNOWMAN}" * 3))) == 3


def test_patterns() -> None:
    """Those of CLIP, GPT-2 and Llama 3 are read."""
    for pattern in (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"\)+[)]*",
    ):
        assert is_plain(pattern)
    for pattern in (r"(a)*", r"(?:a|b)+", r"(a){2,}", r"(a)\1", r"\k<a>", r"\g<0>"):
        assert not is_plain(pattern)
