"""The embedded model's tokenizers, trained on its instructions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.tiny import train  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402
from kontext.tiny.edits import all_prompts_corpus  # noqa: E402
from kontext.tiny.network import Prompts  # noqa: E402
from kontext.tiny.variety import unfamiliar_edit, varied_prompts_corpus  # noqa: E402
from kontext.tiny.vocabulary import extend_t5  # noqa: E402

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny" / "checkpoint"


def test_instructions_fit_the_sequence_encoder_and_mostly_are_whole_words(tmp_path: Path) -> None:
    train.train_tokenizers(tmp_path)
    prompts = Prompts(tmp_path, TINY)
    corpus = list(all_prompts_corpus(300, seed=1))
    clip, t5 = prompts(corpus)
    lengths = (t5 != 0).sum(dim=1)
    assert int(lengths.max()) < TINY.text_encoder_2.max_length
    assert int(t5.max()) < TINY.text_encoder_2.vocab_size
    assert int(clip.max()) < TINY.text_encoder.vocab_size
    words = torch.tensor([len(prompt.split()) for prompt in corpus])
    assert float(lengths.float().mean()) < 1.3 * float(words.float().mean()) + 1  # and the end token


def test_more_words_keep_the_old_ones_ids(tmp_path: Path) -> None:
    """transformers reads the extended model: what was split the same way before still is."""
    shutil.copytree(CHECKPOINT / "tokenizer_2", tmp_path / "tokenizer_2")
    shutil.copytree(CHECKPOINT / "tokenizer", tmp_path / "tokenizer")
    said = list(all_prompts_corpus(100, seed=1))
    before = Prompts(tmp_path, TINY)(said)[1]
    extend_t5(
        [*["please recolour the disc"] * 50, "plaese"],
        TINY.text_encoder_2.vocab_size,
        tmp_path / "tokenizer_2",
    )
    after = Prompts(tmp_path, TINY)
    assert torch.equal(after(said)[1], before)
    assert int((after(["please recolour the disc"])[1] != 0).sum()) == 5  # and the end token
    extend_t5(varied_prompts_corpus(), TINY.text_encoder_2.vocab_size, tmp_path / "tokenizer_2")
    pieces = json.loads((tmp_path / "tokenizer_2" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(pieces) <= TINY.text_encoder_2.vocab_size
    other = [edit.prompt for edit in map(unfamiliar_edit, [np.random.default_rng(5)] * 200)]
    lengths = (after(other)[1] != 0).sum(dim=1)
    assert int(lengths.max()) < TINY.text_encoder_2.max_length
