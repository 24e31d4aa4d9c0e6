"""The pool of encoded edits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.tiny import pool  # noqa: E402


def test_the_pool_replaces_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ENCODE_BATCH", 4)
    edits = pool.EditPool(lambda images: torch.zeros(len(images), 16, 16, 16), size=8, seed=[0])  # type: ignore[arg-type]
    nothing = torch.zeros(64, 64)
    for number in range(11):
        edits.insert(True, (nothing, nothing, str(number)))
    assert sorted(int(prompt) for *_, prompt in edits.pairs[True]) == list(range(3, 11))
    edits.add(60)
    assert len(edits.pairs[True]) == 8
    assert not {str(number) for number in range(11)} & {prompt for *_, prompt in edits.pairs[True]}
    batch = edits.sample(5)
    assert batch.target.shape == (5, 64, 64)
    assert batch.source.shape[1] in (0, 64)
    assert len(batch.prompts) == 5
