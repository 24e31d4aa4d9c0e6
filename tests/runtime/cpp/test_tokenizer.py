"""Token ids of the C++ runtime against the `tokenizers` package's, for every component that it reads."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import random
import struct
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kontext.errors import KontextError
from kontext.runtime.bundle import TokenizerEntry
from kontext.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from .conftest import CppBuild

MANY = 1_000_000
"""Tokens: nothing is cut."""
FUZZED = 100_000
"""Random prompts, over all tokenizers."""

TRICKY = [
    "make the red circle blue",
    "  MAKE\tthe \n\n Red   Circle BLUE  ",
    "don't, it's 3 o'clock: we'll see; they've I'm you'd 'S 'LL",
    "naïve café — e\u0301 vs \u00e9, ﬁne ½ ² \u1e9b\u0323 \u0344 \uac01 \u1100\u1161\u11a8",
    "Straße İstanbul ΑΣΣ ǅ ΐ",
    "画像を赤くする 한국어 עברית हिन्दी க்ஷி ไทย",
    "emoji 🙂👩‍👩‍👧 🇩🇪🇫🇷🇮 👍🏽 ©\u200d🙂 and \u200b zero \u00ad width\ufeff",
    "<|startoftext|> in <|ENDOFTEXT|> the <|endoftext|>text",
    "</s> <pad>▁▁ ▁ tri▁cky<unk></s>",
    "a\u00a0b\u3000c\u0085d\u2028e\u001cf\u180eg",
    "\r\n x\u0301\r\u0301\n \u0600a",
    "word" * 60,
]


@pytest.fixture(scope="session")
def tokenizer_files(kept_folder: Path, embedded_bundle: Callable[[str], Path]) -> dict[str, Path]:
    """The embedded model's, and T5's as it is in full: SentencePiece's own character map, extra tokens; both ways in
    which transformers has written what comes before and after that map."""
    folder = embedded_bundle("fp32") / "tokenizers"
    full = kept_folder / "t5-full.json"
    if not full.exists():
        full.write_text(full_t5(kept_folder))
    chained = kept_folder / "t5-chained.json"
    content = json.loads(full.read_text())
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            content["normalizer"],
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        ],
    }
    content["pre_tokenizer"] = content["pre_tokenizer"]["pretokenizers"][1]
    chained.write_text(json.dumps(content))
    return {"clip": folder / "clip.json", "t5": folder / "t5.json", "t5-full": full, "t5-chained": chained}


def full_t5(folder: Path) -> str:
    """A unigram model trained here, with the normalization that T5's has, as transformers converts it."""
    sentencepiece: Any = pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    corpus = folder / "t5-corpus.txt"
    corpus.write_text(
        "\n".join(
            [*TRICKY, *(f"draw {n} stars above the {c} house" for n in range(9) for c in ("red", "blue"))]
        )
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "t5-full"), vocab_size=160, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, normalization_rule_name="nmt_nfkc", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "t5-full.model").read_bytes())
    tokenizer = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=2))
    tokenizer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens(
        [AddedToken(f"<extra_id_{n}>", lstrip=n % 2 == 0, rstrip=n < 2) for n in range(4)]
    )
    tokenizer.add_tokens([AddedToken("Red House", normalized=True)])
    return tokenizer.to_str()


def cpp_lines(cpp: CppBuild, file: Path, prompts: list[bytes], max_length: int = MANY) -> list[str]:
    given_bytes = b"".join(b"%d\n%b" % (len(prompt), prompt) for prompt in prompts)
    return cpp.ask("ids", file, max_length, given=given_bytes).decode().splitlines()


def cpp_ids(cpp: CppBuild, file: Path, prompts: list[str], max_length: int = MANY) -> list[list[int]]:
    """Of each prompt: how many tokens were cut off, then its ids."""
    lines = cpp_lines(cpp, file, [prompt.encode() for prompt in prompts], max_length)
    return [[int(word) for word in line.split()] for line in lines]


def python_ids(file: Path, prompts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    return [encoding.ids for encoding in Tokenizer.from_file(str(file)).encode_batch(prompts)]


def compare(cpp: CppBuild, file: Path, prompts: list[str]) -> None:
    rows = cpp_ids(cpp, file, prompts)
    for prompt, ours, theirs in zip(prompts, rows, python_ids(file, prompts), strict=True):
        assert ours == [0, *theirs], f"{file.name}: {prompt!a}"


@pytest.mark.parametrize("name", ["clip", "t5", "t5-full", "t5-chained"])
def test_ids_of_tricky_prompts(cpp: CppBuild, tokenizer_files: dict[str, Path], name: str) -> None:
    prompts = [
        *TRICKY,
        "",
        " ",
        "Red House <extra_id_0> a <extra_id_1> b<extra_id_2> <extra_id_3> c Red  House",
    ]
    compare(cpp, tokenizer_files[name], prompts)


@pytest.mark.parametrize("name", ["clip", "t5-full"])
def test_ids_of_every_character(cpp: CppBuild, tokenizer_files: dict[str, Path], name: str) -> None:
    """Side by side, so that neighbours may join; the tables of unicode_tables.inc are those of the package."""
    codes = [code for code in [*range(0x32000), *range(0xE0000, 0xE0200)] if not 0xD800 <= code < 0xE000]
    prompts = ["a" + "".join(map(chr, codes[start : start + 60])) for start in range(0, len(codes), 60)]
    prompts += [
        "".join(f"e{chr(code)} " for code in codes[start : start + 60]) for start in range(0, 0x3000, 60)
    ]
    compare(cpp, tokenizer_files[name], prompts)


def test_what_is_cut_is_counted(cpp: CppBuild, tokenizer_files: dict[str, Path]) -> None:
    (whole,) = cpp_ids(cpp, tokenizer_files["t5"], ["make the circle red " * 40])
    (cut,) = cpp_ids(cpp, tokenizer_files["t5"], ["make the circle red " * 40], 24)
    assert cut[0] == len(whole[1:]) - 24
    assert cut[1:] == [*whole[1:24], whole[-1]]


def test_a_prompt_of_a_megabyte(cpp: CppBuild, tokenizer_files: dict[str, Path]) -> None:
    """In one word and in many: neither takes time that grows faster than the prompt."""
    for name in ("clip", "t5-full"):
        for prompt in ("a" * 1_000_000, "ab 'll " * 150_000):
            (ids,) = cpp_ids(cpp, tokenizer_files[name], [prompt], 77)
            assert len(ids) <= 78


@pytest.mark.parametrize("prompt", ["\udcff", "a\ud800b", "\udc80</s>"])
def test_what_is_not_unicode_is_refused_as_in_python(
    cpp: CppBuild, tokenizer_files: dict[str, Path], prompt: str
) -> None:
    """Lone surrogates, as bytes that a shell passes on and as other languages write them in UTF-8."""
    file = tokenizer_files["t5"]
    with pytest.raises(KontextError) as refused:
        PromptTokenizer(TokenizerEntry(file, 77, 0, 1), "t5")([prompt])
    lines = cpp_lines(cpp, file, [prompt.encode("utf-8", "surrogatepass"), b"\xff"])
    assert lines == [f"error: {refused.value}"] * 2


# -- random prompts, on every combination of components that files have --

Mutation = Callable[[dict[str, Any]], None]

METASPACES: dict[str, dict[str, Any]] = {
    "default": {},
    "always": {"prepend_scheme": "always", "add_prefix_space": True},
    "first": {"prepend_scheme": "first", "add_prefix_space": True},
    "never": {"prepend_scheme": "never", "add_prefix_space": False},
    "whole": {"prepend_scheme": "first", "split": False},
}
"""FLUX.1's own tokenizer_2 and ComfyUI's T5 tokenizer have "first" with `add_prefix_space`, without WhitespaceSplit,
and the chained normalizer; Stable Diffusion 3's tokenizer_3 has "always"; Google's first files have WhitespaceSplit."""
STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
NORMALIZERS: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {
    "own": lambda own: [own],
    "chained": lambda own: [own, STRIP | {"strip_left": False}, replacement({"Regex": " {2,}"}, "▁")],
    "stripped": lambda own: [STRIP, own, replacement({"String": " "}, "▁")],
    "written out": lambda own: [
        own,
        {"type": "NFC"},
        {"type": "Lowercase"},
        replacement({"String": "tm"}, " x "),
    ],
    "clip's": lambda own: [{"type": "NFC"}, replacement({"Regex": "\\s+"}, " "), {"type": "Lowercase"}],
}


def replacement(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def t5_like(metaspace: str, normalizer: str, split_first: bool) -> Mutation:
    def change(content: dict[str, Any]) -> None:
        marks = {"type": "Metaspace", "replacement": "▁", **METASPACES[metaspace]}
        words = [{"type": "WhitespaceSplit"}] if split_first else []
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*words, marks]} if words else marks
        own = content["normalizer"]
        content["normalizer"] = {"type": "Sequence", "normalizers": NORMALIZERS[normalizer](own)}
        # Found in the normalized text, which may begin within a character that was written out
        content["added_tokens"] += [
            added(content, id_from_end, text, normalized=True)
            for id_from_end, text in enumerate(("T", "s", "1"))
        ]

    return change


def added(content: dict[str, Any], number: int, text: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`; the package ignores its id."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": 5000 + number, "content": text, **plain, **flags}


def byte_level(**changes: bool) -> Mutation:
    """Of CLIP's files: other flags of ByteLevel, tokens that take the spaces around them."""

    def change(content: dict[str, Any]) -> None:
        content["pre_tokenizer"]["pretokenizers"][1].update(changes)
        content["added_tokens"] += [
            added(content, 0, "<left>", lstrip=True), added(content, 1, "<both>", lstrip=True, rstrip=True),
            added(content, 2, "Ab", normalized=True, rstrip=True), added(content, 3, "e\u0301", normalized=True),
        ]  # fmt: skip

    return change


def old_merges(content: dict[str, Any]) -> None:
    """As files were written before version 0.20 of the package: pairs as one string."""
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]


def clusters(content: dict[str, Any]) -> None:
    """A character map that shows where grapheme clusters end: each of at most 5 bytes becomes one R, each character of
    longer ones too (see runtime/cpp/tools/unicode_tables.py)."""
    units = [0] * 768
    units[0] = 256 << 10
    for byte in range(1, 256):
        units[256 ^ byte] = (256 ^ byte ^ (512 + byte)) << 10 | 1 << 8 | byte
        units[512 + byte] = 1 << 31
    data = struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b"R\0"
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
    content["pre_tokenizer"] = None
    content["added_tokens"] = []
    content["model"]["vocab"].append(["R", -1.0])


VARIANTS: dict[str, tuple[str, Mutation]] = {
    "clip": ("clip", lambda content: None),
    "clip with old merges": ("clip", old_merges),
    "clip with spaces": ("clip", byte_level(add_prefix_space=True)),
    "clip without pattern": ("clip", byte_level(use_regex=False)),
    "t5": ("t5", lambda content: None),
    "clusters": ("t5-full", clusters),
    **{
        f"{metaspace}, {normalizer}{', split' if split_first else ''}": (
            "t5-full",
            t5_like(metaspace, normalizer, split_first),
        )
        for metaspace, normalizer, split_first in itertools.product(METASPACES, NORMALIZERS, (False, True))
    },
}


@functools.cache
def characters() -> dict[str, list[str]]:
    """Characters by what may go wrong with them."""
    everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    category = {each: unicodedata.category(each) for each in everything[:0x20000]}
    unassigned = [each for each, kind in category.items() if kind == "Cn"]
    return {
        "compatibility": [each for each in category if unicodedata.decomposition(each)],
        "unassigned": unassigned,
        "unassigned beside letters": [each for each in unassigned if ord(each) < 0x2000],
        "marks": [each for each, kind in category.items() if kind in ("Mn", "Mc", "Me")],
        "controls": [each for each, kind in category.items() if kind in ("Cc", "Cf", "Zs", "Zl", "Zp")],
        "hangul": [chr(code) for code in [*range(0x1100, 0x1200), *range(0xAC00, 0xAC40), 0x16D63, 0x16D67]],
        "conjuncts": list("कषরक््\u09cd\u0300\u200d\u1039\u1000\u1b44\u1b13\U00011f42\U00011f12"),
        "emoji": list("©®™🙂👩🇩🇪👍🏽\u200d\ufe0f\u0300"),
        "words": list("abcdefghijklmnopqrstuvwxyzABTMS0123456789  .,'"),
        "spaces": list("  ▁\t\n\r\xa0\u3000\0"),
        "everything": everything,
    }


def random_prompts(seed: int, count: int, special: list[str]) -> Iterator[str]:
    draw = random.Random(seed)
    pools = [
        *characters().values(),
        special,
        [" 'LL", "'s", "don't", "Red House", "TM", "x" * 400, " " * 300],
    ]
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 4)):
            pool = draw.choice(pools)
            parts += draw.choices(pool, k=1 if len(pool) < 8 else draw.randint(1, 4))
        yield "".join(parts)


def test_ids_of_random_prompts(cpp: CppBuild, tokenizer_files: dict[str, Path], tmp_path: Path) -> None:
    for number, (name, (base, change)) in enumerate(VARIANTS.items()):
        content = json.loads(tokenizer_files[base].read_text())
        change(content)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        special = [each["content"] for each in content["added_tokens"]] or ["</s>"]
        compare(cpp, file, list(random_prompts(number, FUZZED // len(VARIANTS) + 1, special)))


@pytest.mark.parametrize("prompt", ["ſ\u05c8", "™\u05c9", "½\u1acf", "©\u200d\u200d™\u0300"])
@pytest.mark.parametrize("variant", ["clusters", "first, chained"])
def test_clusters_are_those_of_the_package(
    cpp: CppBuild, tokenizer_files: dict[str, Path], tmp_path: Path, variant: str, prompt: str
) -> None:
    """Also where its version of Unicode has not assigned what a newer one has."""
    base, change = VARIANTS[variant]
    content = json.loads(tokenizer_files[base].read_text())
    change(content)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    compare(cpp, file, [prompt])


@pytest.mark.parametrize(
    ("scheme", "pieces"),
    [
        ("always", "▁red <b> ▁red <b> ▁red"),
        ("first", "▁red <b> red <b> ▁red"),
        ("never", "red <b> red <b> ▁red"),
    ],
)
def test_first_marks_the_beginning_of_the_prompt_only(
    cpp: CppBuild, tmp_path: Path, scheme: str, pieces: str
) -> None:
    vocabulary = ["<unk>", "▁red", "red", "▁", "<b>"]
    content = {
        "version": "1.0", "normalizer": None, "post_processor": None, "truncation": None, "padding": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [[piece, -1.0] for piece in vocabulary]},
    }  # fmt: skip
    content["added_tokens"] = [added(content, 0, "<b>") | {"id": 4}]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    compare(cpp, file, ["red<b>red<b> red"])
    (row,) = cpp_ids(cpp, file, ["red<b>red<b> red"])
    assert [vocabulary[each] for each in row[1:]] == pieces.split()
