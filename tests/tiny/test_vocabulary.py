"""The embedded model's tokenizers, trained on its instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.tiny import train  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402
from kontext.tiny.edits import all_prompts_corpus  # noqa: E402
from kontext.tiny.network import Prompts  # noqa: E402


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
