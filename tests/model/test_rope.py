"""RoPE tables: their layout, and the property that makes them relative."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.model.rope import position_ids, rope_tables, rotate  # noqa: E402


def test_positions_run_row_by_row() -> None:
    ids = position_ids(2, 2, 3)
    assert ids.tolist() == [[2, 0, 0], [2, 0, 1], [2, 0, 2], [2, 1, 0], [2, 1, 1], [2, 1, 2]]


def test_tables_by_the_formula() -> None:
    cos, sin = rope_tables(torch.tensor([[1.0, 5.0, 7.0]], dtype=torch.float64), (4, 2, 2), 10_000.0)
    angles = torch.tensor([[1.0, 1 / 100, 5.0, 7.0]], dtype=torch.float64)
    torch.testing.assert_close(cos, angles.cos().float())
    torch.testing.assert_close(sin, angles.sin().float())


def test_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator)
    scores = []
    for offset in (0, 3, 40):
        ids = torch.tensor([[0, 2 + offset, 5 + offset], [0, 9 + offset, 1 + offset]], dtype=torch.float64)
        cos, sin = rope_tables(ids, (4, 6, 6), 10_000.0)
        turned = rotate(query, cos[:1], sin[:1]), rotate(key, cos[1:], sin[1:])
        scores.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(scores[1], scores[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores[2], scores[0], atol=1e-5, rtol=0)
