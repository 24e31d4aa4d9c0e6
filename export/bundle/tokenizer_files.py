"""The two tokenizers as Hugging Face `tokenizers` files, so that a runtime needs that small library and not
transformers.

An existing `tokenizer.json` is used; otherwise CLIP's is made from vocab.json and merges.txt, T5's from spiece.model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import KontextError
from ...model.checkpoint import Checkpoint
from ...model.json_fields import Fields
from ...model.tokenizer_config import SIDES
from ...regular_files import MAX_JSON_BYTES, read_regular
from ...runtime import protobuf
from ...runtime.tokenizer_file import MAX_PIECE, library_errors, load_tokenizer

CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Regular expression by which CLIP splits lower-cased text (openai/CLIP, simple_tokenizer.py)."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer ready to be written, and the ids that a runtime pads and ends with."""

    text: str
    """JSON of the `tokenizers` library."""
    max_length: int
    pad_id: int
    eos_id: int


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, TokenizerFile]:
    """Both tokenizers of a checkpoint.

    Raises:
        KontextError: one is missing or damaged, or does not fit its text encoder.
    """
    clip, t5 = checkpoint.config.text_encoder, checkpoint.config.text_encoder_2
    return {
        "clip": clip_file(checkpoint.tokenizer_folder("tokenizer"), clip.max_length, clip.vocab_size),
        "t5": t5_file(checkpoint.tokenizer_folder("tokenizer_2"), t5.max_length, t5.vocab_size),
    }


def clip_file(folder: Path, max_length: int, vocab_size: int) -> TokenizerFile:
    """CLIP's tokenizer from a diffusers folder's `tokenizer/`; ids below `vocab_size`, prompts of `max_length`
    tokens."""
    if (folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    else:
        tokenizer = build_clip(folder)
    return tokenizer_file(tokenizer, folder, max_length, vocab_size, CLIP_SPECIAL)


def t5_file(folder: Path, max_length: int, vocab_size: int) -> TokenizerFile:
    """T5's tokenizer from a diffusers folder's `tokenizer_2/`."""
    if (folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    elif (folder / "spiece.model").exists():
        tokenizer = convert_sentencepiece(folder)
    else:
        raise KontextError(
            f"{folder} has neither tokenizer.json nor spiece.model: the checkpoint is incomplete"
        )
    return tokenizer_file(tokenizer, folder, max_length, vocab_size, T5_SPECIAL)


def convert_sentencepiece(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # slow to import, and few checkpoints need it

    path = folder / "spiece.model"
    check_pieces(path)
    with library_errors(f"cannot convert {path}"):
        return Tokenizer.from_str(AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer.to_str())


def check_pieces(path: Path) -> None:
    """Raises KontextError if a file of SentencePiece has a piece longer than `MAX_PIECE`. Its message has pieces as
    field 1, and a piece its text as field 1
    (https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto).
    """
    try:
        data = read_regular(path, MAX_JSON_BYTES, "a model of SentencePiece")
        pieces = (piece for number, piece in protobuf.fields(memoryview(data)) if number == 1)
        texts = (
            text
            for piece in pieces
            if isinstance(piece, memoryview)
            for number, text in protobuf.fields(piece)
            if number == 1 and isinstance(text, memoryview)
        )
        # At most 4 bytes make a character.
        too_long = any(
            len(text) > MAX_PIECE and len(str(text, "utf-8", "replace")) > MAX_PIECE for text in texts
        )
    except ValueError as error:
        raise KontextError(f"{path} is not a model of SentencePiece: {error}") from None
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    if too_long:
        raise KontextError(f"{path} has a piece of more than {MAX_PIECE:,} characters")


def build_clip(folder: Path) -> Tokenizer:
    """CLIP's byte-level BPE: NFC, single spaces, lower case, between <|startoftext|> and <|endoftext|>."""
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    vocab = Fields(vocab_path).data
    try:
        lines = read_regular(merges_path, MAX_JSON_BYTES, "a list of merges").decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise KontextError(f"{merges_path} is not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError:
        raise KontextError(f"{merges_path} is missing: the checkpoint is incomplete") from None
    merges = [line.partition(" ")[::2] for line in lines if line.strip() and not line.startswith("#version")]
    special = {
        name: special_token(folder, f"{name}_token", default) for name, default in CLIP_SPECIAL.items()
    }
    for token in special.values():
        if token not in vocab:
            raise KontextError(f"{vocab_path} lacks {token}")
    with library_errors(f"{vocab_path} and merges.txt do not fit together"):
        model = models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=special["unk"],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (special["eos"], vocab[special["eos"]]),
        (special["bos"], vocab[special["bos"]]),
        add_prefix_space=False,
        trim_offsets=False,
    )
    ordered = sorted(set(special.values()), key=vocab.__getitem__)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ordered])
    return tokenizer


CLIP_SPECIAL = {
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "unk": "<|endoftext|>",
    "pad": "<|endoftext|>",
}

T5_SPECIAL = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def special_token(folder: Path, name: str, default: str) -> str:
    """A special token by its name. As in transformers, special_tokens_map.json goes before a tokenizer_config.json
    without `added_tokens_decoder`, as older versions wrote it, and is not used beside one that has it."""
    found = {
        file: Fields(folder / file).data
        for file in ("special_tokens_map.json", "tokenizer_config.json")
        if (folder / file).exists()
    }
    if "added_tokens_decoder" in found.get("tokenizer_config.json", {}):
        found.pop("special_tokens_map.json", None)
    for fields in found.values():
        token = fields.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            return content
    return default


def check_sides(tokenizer: Tokenizer, folder: Path) -> None:
    """Raises KontextError if tokenizer.json pads or cuts at the start, which applies in transformers unless
    tokenizer_config.json says otherwise; that file itself is checked as the checkpoint is opened."""
    path = folder / "tokenizer_config.json"
    configured = Fields(path).data if path.exists() else {}
    for name, settings in zip(SIDES, (tokenizer.padding, tokenizer.truncation), strict=True):
        direction = "right" if settings is None else settings["direction"]
        if direction != "right" and configured.get(name) is None:
            part = name.removesuffix("_side")
            raise KontextError(
                f"{folder / 'tokenizer.json'}: {part}'s direction is {direction!r}, expected 'right'"
            )


def tokenizer_file(
    tokenizer: Tokenizer, folder: Path, max_length: int, vocab_size: int, special: Mapping[str, str]
) -> TokenizerFile:
    """Checks the tokenizer against its text encoder, and turns off truncation and padding: the runtime does both.
    `special`: a token's role → the token, where the folder names none."""
    check_sides(tokenizer, folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = {}
    for name in ("eos", "pad"):
        token = special_token(folder, f"{name}_token", special[name])
        found = tokenizer.token_to_id(token)
        if found is None:
            raise KontextError(f"{folder}: the tokenizer lacks its {name} token {token}")
        ids[name] = found
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        raise KontextError(
            f"{folder}: token id {largest} is beyond the text encoder's vocabulary of {vocab_size}"
        )
    text = json.dumps(
        json.loads(tokenizer.to_str()), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )
    return TokenizerFile(text, max_length, ids["pad"], ids["eos"])
