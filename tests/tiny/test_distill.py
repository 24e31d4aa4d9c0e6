"""The losses of guidance and few-step distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.tiny import distill  # noqa: E402


class Straight:
    """A flow whose trajectories are straight lines to `picture`: v = noise - picture everywhere on them."""

    def __init__(self, picture: Any) -> None:
        self.picture = picture

    def __call__(self, x: Any, source: Any, pooled: Any, text: Any, time: Any, guidance: Any) -> Any:
        return (x - self.picture) / time.clamp(min=1e-6)[:, None, None]


def test_consistency_holds_for_a_straight_flow() -> None:
    picture = torch.randn(6, 4, 8)
    nothing = torch.empty(0)
    batch = distill.Conditioned(picture, nothing, nothing, nothing, nothing, nothing, torch.ones(6))
    flow: Any = Straight(picture)
    for _ in range(10):
        assert float(distill.consistency_loss(flow, flow, flow, batch)) < 1e-8


def test_guidance_of_1_is_the_instruction_alone_and_more_goes_beyond() -> None:
    told = torch.tensor([1.0, 2.5, 4.0])
    one, zero = torch.ones(3, 4), torch.zeros(3, 4)
    batch = distill.Conditioned(torch.randn(3, 4, 8), torch.empty(0), one, one, zero, zero, told)

    def teacher(x: Any, source: Any, pooled: Any, text: Any, time: Any, guidance: Any) -> Any:
        assert torch.equal(guidance, torch.ones(3))
        return pooled[:, :1, None].expand_as(x)  # 1 with the instruction, 0 without

    def student(x: Any, source: Any, pooled: Any, text: Any, time: Any, guidance: Any) -> Any:
        return torch.tensor([1.0, 1.5, 2.0])[:, None, None].expand_as(x)

    networks: tuple[Any, Any, Any] = (student, None, teacher)
    assert float(distill.guidance_loss(*networks, batch)) < 1e-12


def test_phases_end_where_the_four_step_schedule_steps(tiny_bundle: Path) -> None:
    from kontext.runtime.bundle import Bundle
    from kontext.runtime.sampler import schedule

    edges = distill.phase_edges("cpu").numpy()
    assert np.abs(edges - schedule(4, 64, Bundle.open(tiny_bundle).sampler)).max() < 2e-3
