"""The flow's loss."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.tiny import train_flow  # noqa: E402


def test_the_foreground_weighs_more_whether_it_changes_or_stays() -> None:
    source = torch.zeros(1, 5, 8)
    source[:, 1] = 1.0  # an object that stays
    target = source.clone()
    target[:, 4] = 1.0  # and one that is added
    weight = train_flow.foreground_weight(source, target)
    assert float(weight.mean()) == pytest.approx(1)
    assert torch.allclose(weight[0, [1, 4]] / weight[0, 0], torch.tensor(1 + train_flow.FOREGROUND_WEIGHT))
    alone = train_flow.foreground_weight(target[:, :0], target)
    assert torch.equal(alone, weight)
