"""The words of instructions."""

from __future__ import annotations

from kontext.tiny import edits, phrases


def test_corpus_and_vocabulary() -> None:
    corpus = list(edits.all_prompts_corpus(3000))
    assert corpus == list(edits.all_prompts_corpus(3000))
    words = {word.strip(",") for prompt in corpus for word in prompt.split()}
    assert words == set(phrases.vocabulary())
    assert len(words) < 150
