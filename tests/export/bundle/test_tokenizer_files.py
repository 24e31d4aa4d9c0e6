"""Tokenizer files give the ids that transformers gives, on strings that trip naive copies."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.tokenizer_files import check_pieces, clip_file, t5_file  # noqa: E402

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


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("map_file", [True, False])
def test_padding_other_than_the_end(clip_folder: Path, tmp_path: Path, legacy: bool, map_file: bool) -> None:
    """The pad token of transformers' AutoTokenizer; which of two files decides depends on a third field."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = json.loads((folder / "vocab.json").read_text())
    config["pad_token"] = "!"
    if not legacy:
        config["added_tokens_decoder"] = {str(vocab["!"]): {"content": "!", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if not map_file:
        (folder / "special_tokens_map.json").unlink()
    expected = transformers.AutoTokenizer.from_pretrained(folder).pad_token_id
    assert (expected == vocab["!"]) == (not (legacy and map_file))
    assert clip_file(folder, 77, 600).pad_id == expected


@pytest.mark.parametrize("configured", [None, "right"])
@pytest.mark.parametrize("part", ["padding", "truncation"])
def test_sides_in_tokenizer_json(t5_folder: Path, tmp_path: Path, part: str, configured: str | None) -> None:
    """They apply in transformers' AutoTokenizer if tokenizer_config.json has none."""
    folder = Path(shutil.copytree(t5_folder, tmp_path / "tokenizer_2"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if part == "padding":
        tokenizer.enable_padding(direction="left", length=9)
    else:
        tokenizer.enable_truncation(5, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    if configured:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, f"{part}_side": configured}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert getattr(theirs, f"{part}_side") == (configured or "left")
    if configured:
        assert t5_file(folder, 24, 160) == t5_file(t5_folder, 24, 160)
    else:
        with pytest.raises(KontextError, match=f"tokenizer.json: {part}'s direction is 'left', expected"):
            t5_file(folder, 24, 160)


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


def test_a_tokenizer_of_another_model(clip_folder: Path, t5_folder: Path) -> None:
    with pytest.raises(KontextError, match="token id 599 is beyond the text encoder's vocabulary of 500"):
        clip_file(clip_folder, 77, 500)
    with pytest.raises(KontextError, match="beyond"):
        t5_file(t5_folder, 24, 50)


def test_no_t5_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=r"neither tokenizer.json nor spiece.model"):
        t5_file(tmp_path, 24, 160)
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(KontextError, match=r"spiece.model is not a model of SentencePiece: "):
        t5_file(tmp_path, 24, 160)
    (tmp_path / "spiece.model").write_bytes(sentencepiece("a", "b"))
    with pytest.raises(KontextError, match=r"cannot convert .*spiece.model"):
        t5_file(tmp_path, 24, 160)


@pytest.mark.parametrize(("character", "count", "refused"), [("a", 1000, False), ("é", 1001, True)])
def test_a_piece_that_would_end_the_process_is_refused(
    tmp_path: Path, character: str, count: int, refused: bool
) -> None:
    """The `tokenizers` library recurses into a piece; one of 600,000 characters was a SIGSEGV."""
    path = tmp_path / "spiece.model"
    path.write_bytes(sentencepiece("a", character * count))
    with pytest.raises(KontextError, match="a piece of more than") if refused else contextlib.nullcontext():
        check_pieces(path)


def sentencepiece(*pieces: str) -> bytes:
    """A model of SentencePiece with these pieces and no settings, by Google's Protocol Buffers."""
    protobuf = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = protobuf.ModelProto()
    for piece in pieces:
        model.pieces.add(piece=piece, score=-1.0)
    return bytes(model.SerializeToString())
