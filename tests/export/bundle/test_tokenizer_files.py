"""Tokenizer files give the ids that transformers gives, on strings that trip naive copies."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.tokenizer_files import check_tokenizer_config, clip_file, t5_file  # noqa: E402

TEXTS = [
    "",
    " ",
    "make the red circle blue",
    "  MAKE\tthe \n\n Red   Circle BLUE  ",
    "don't, it's 3 o'clock: we'll see; they've I'm you'd",
    "42 1234 7th v2.0",
    "naïve café — e\u0301 vs \u00e9, ﬁne ½ ²",
    "Straße İstanbul ΑΣΣ",
    "画像を赤くする 한국어 עברית",
    "emoji 🙂👩‍👩‍👧 and \u200b zero width",
    "<|startoftext|> in <|endoftext|> the text",
    "</s> <pad> ▁ tricky",
    "!!!??? (a) [b] {c} #tag @me a_b a-b",
    "a\u00a0b\u3000c",
    "word" * 60,
]


@pytest.fixture
def clip_folder(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint / "tokenizer"


@pytest.fixture
def t5_folder(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint / "tokenizer_2"


@pytest.mark.parametrize("text", TEXTS)
def test_clip_ids_are_transformers(clip_folder: Path, text: str) -> None:
    assert not (clip_folder / "tokenizer.json").exists()
    ours = Tokenizer.from_str(clip_file(clip_folder, 77, 600).text)
    theirs = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    assert ours.encode(text).ids == theirs(text).input_ids


@pytest.mark.parametrize("text", TEXTS)
def test_t5_ids_are_transformers(t5_folder: Path, text: str) -> None:
    ours = Tokenizer.from_str(t5_file(t5_folder, 24, 160).text)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(t5_folder / "tokenizer.json"))
    assert ours.encode(text).ids == theirs(text).input_ids


def test_clip_special_ids(clip_folder: Path) -> None:
    made = clip_file(clip_folder, 77, 600)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    assert (made.max_length, made.pad_id, made.eos_id) == (77, tokenizer.pad_token_id, tokenizer.eos_token_id)
    ids = Tokenizer.from_str(made.text).encode("x").ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_padding_other_than_the_end(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = {"content": "!", "lstrip": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    vocab = json.loads((folder / "vocab.json").read_text())
    assert clip_file(folder, 77, 600).pad_id == vocab["!"]


def test_a_tokenizer_file_is_taken_as_it_is(clip_folder: Path, tmp_path: Path) -> None:
    """But for padding and truncation, which are the runtime's."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    tokenizer = Tokenizer.from_str(clip_file(clip_folder, 77, 600).text)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").unlink()
    assert clip_file(folder, 77, 600) == clip_file(clip_folder, 77, 600)


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("vocab.json"), r"vocab.json is missing"),
        (remove("merges.txt"), r"merges.txt is missing"),
        (lambda f: (f / "vocab.json").write_text("[]"), "JSON object"),
        (lambda f: (f / "vocab.json").write_text('{"a": 0}'), "lacks <|startoftext|>"),
        (lambda f: (f / "merges.txt").write_text("#version: 0.2\nqq zz\n"), "do not fit together"),
        (lambda f: (f / "merges.txt").write_text("#version: 0.2\nqqzz\n"), "do not fit together"),
        (lambda f: (f / "vocab.json").write_text('{"<|startoftext|>": "a"}'), "vocab.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
        (lambda f: (f / "tokenizer.json").write_bytes(b"\xff"), "is not a tokenizer"),
    ],
)
def test_damaged_clip_tokenizers(clip_folder: Path, tmp_path: Path, damage, message: str) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    damage(folder)
    with pytest.raises(KontextError, match=message.replace("|", r"\|")):
        clip_file(folder, 77, 600)


PUBLISHED = [
    {
        "add_prefix_space": False,
        "added_tokens_decoder": {"49406": {"content": "<|startoftext|>", "special": True}},
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    },
    {
        "add_prefix_space": True,
        "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}},
        "additional_special_tokens": ["<extra_id_0>"],
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        "extra_ids": 100,
        "legacy": True,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    },
]
"""The fields of FLUX.1's two tokenizer_config.json."""


@pytest.mark.parametrize("fields", PUBLISHED)
def test_published_configurations_are_read_without_a_word(tmp_path: Path, fields: dict[str, object]) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(fields))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tokenizer_config(path)
    path.write_text(json.dumps(fields | {"dropout": 0.1}))
    with pytest.warns(UserWarning, match=r"tokenizer_config.json: unknown, and not used: dropout = 0.1"):
        check_tokenizer_config(path)


def test_what_the_installed_library_writes_is_known(
    clip_folder: Path, t5_folder: Path, tmp_path: Path
) -> None:
    for folder in (clip_folder, t5_folder):
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / folder.name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_tokenizer_config(tmp_path / folder.name / "tokenizer_config.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("padding_side", "left", "padding_side is 'left', expected 'right'"),
        ("truncation_side", "left", "truncation_side is 'left', expected 'right'"),
        ("split_special_tokens", True, "split_special_tokens is True, expected False"),
    ],
)
def test_settings_that_change_ids(tmp_path: Path, field: str, value: object, message: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(KontextError, match=message):
        check_tokenizer_config(tmp_path / "tokenizer_config.json")


def test_a_tokenizer_of_another_model(clip_folder: Path, t5_folder: Path) -> None:
    with pytest.raises(KontextError, match="token id 599 is beyond the text encoder's vocabulary of 500"):
        clip_file(clip_folder, 77, 500)
    with pytest.raises(KontextError, match="beyond"):
        t5_file(t5_folder, 24, 50)


def test_no_t5_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=r"neither tokenizer.json nor spiece.model"):
        t5_file(tmp_path, 24, 160)
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(KontextError, match=r"cannot convert .*spiece.model"):
        t5_file(tmp_path, 24, 160)
