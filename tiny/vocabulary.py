"""Trains the embedded model's tokenizers on its instructions: CLIP's BPE and T5's unigram model.

They are written as in a diffusers folder, so that transformers reads them too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CLIP_SPLIT = (
    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
)
PUNCTUATION = ",.;:!?'\""
CHARACTER_SCORE = -20.0
RARE = 1e-4
"""Share of a corpus's words below which a word is not worth a piece of its own."""
START, END = "<|startoftext|>", "<|endoftext|>"


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def train_clip(corpus: Iterable[str], vocab_size: int, max_length: int, folder: Path) -> None:
    """Trains byte-level BPE with CLIP's normalizer and splitting, and writes vocab.json and merges.txt to `folder`.

    The end-of-text token has the highest id, as in CLIP, whose pooling relies on it.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # CLIP's vocabulary begins with the 256 bytes, then the same bytes at the end of a word.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [byte + "</w>" for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=[], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]][: vocab_size - len(base) - 2]
    tokens = [*base, *("".join(merge) for merge in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": max_length,
            "do_lower_case": True,
        },
    )


def train_t5(corpus: Iterable[str], vocab_size: int, max_length: int, folder: Path) -> None:
    """Makes a unigram model with T5's whitespace marks and end token, and writes tokenizer.json to `folder`.

    The corpus has few words, so the most frequent words are the pieces, scored by their log frequency; other words are
    spelled in single characters, which score lower than any word. (The library's trainer reduces such a corpus to
    fragments.)
    """
    pre_tokenizer = t5_splitter()
    counts = count_words(pre_tokenizer, corpus)
    special_tokens = ["<pad>", "</s>", "<unk>"]
    characters = ["▁", *(chr(code) for code in range(33, 127))]
    by_frequency = sorted(counts.keys() - set(characters), key=lambda word: (-counts[word], word))
    words = by_frequency[: vocab_size - len(special_tokens) - len(characters)]
    pieces = [(token, 0.0) for token in special_tokens]
    pieces += [(word, math.log(counts[word] / counts.total())) for word in words]
    pieces += [(character, CHARACTER_SCORE) for character in characters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {**special, "tokenizer_class": "T5TokenizerFast", "model_max_length": max_length, "extra_ids": 0},
    )


def t5_splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )


def count_words(splitter: pre_tokenizers.PreTokenizer, corpus: Iterable[str]) -> Counter[str]:
    """How often each word and each mark after a word occurs."""
    counts: Counter[str] = Counter()
    for text in corpus:
        for word, _ in splitter.pre_tokenize_str(text):
            stem = word.rstrip(PUNCTUATION)
            counts.update([stem, *word[len(stem) :]])
    return counts


def extend_t5(corpus: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Adds the corpus's words that `folder`'s unigram model lacks, up to `vocab_size` pieces, and no rare ones: those
    are slips of the finger. Pieces keep their ids, so that weights trained with them stay right."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    known = {piece for piece, _ in pieces}
    counts = count_words(t5_splitter(), corpus)
    new = [word for word in counts.keys() - known if counts[word] >= RARE * counts.total()]
    new.sort(key=lambda word: (-counts[word], word))
    pieces += [[word, math.log(counts[word] / counts.total())] for word in new[: vocab_size - len(pieces)]]
    path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
