"""LoRAs as branches of stored linears, against float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.model.config import KontextConfig, TransformerConfig  # noqa: E402
from kontext.model.lora_slots import network_slots, row_counts  # noqa: E402
from kontext.runtime.backends.torch.loras import linear_branches  # noqa: E402
from kontext.runtime.backends.torch.weights import StoredLinear  # noqa: E402

CONFIG = KontextConfig(
    transformer=TransformerConfig(
        hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=1, axes_dim=(4, 6, 6), text_dim=8
    )
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_each_slot_reaches_its_own_outputs() -> None:
    slots = network_slots("transformer", CONFIG)
    rows = row_counts(slots)
    down, up = torch.zeros(rows[0], 3), torch.zeros(rows[1], 3)
    fused = slots["single_blocks.0.linear1.weight"]  # q, k, v and the MLP
    assert len(fused) == 4
    for slot in (fused[1], fused[3]):
        down[slot.down], up[slot.up] = random(32, 3), random(slot.up.stop - slot.up.start, 3)
    branches = linear_branches("transformer", CONFIG, down.numpy(), up.numpy())
    assert list(branches) == ["single_blocks.0.linear1.weight"]
    wide, tall = branches["single_blocks.0.linear1.weight"]
    assert wide.shape[1] % 16 == 0
    expected = torch.zeros(32, fused[-1].weight.stop)
    for slot in (fused[1], fused[3]):
        expected[:, slot.weight] = down[slot.down] @ up[slot.up].t()
    torch.testing.assert_close(wide @ tall, expected)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("branched", [False, True])
def test_a_branch_takes_the_inputs_as_they_are(centred: bool, scaled: bool, branched: bool) -> None:
    x, weight, down, up = random(4, 6), random(6, 5), random(6, 2), random(2, 5)
    mean, factor = random(6), random(6).abs() + 0.5
    linear = StoredLinear(
        weight / factor[:, None] if scaled else weight,
        mean @ weight if centred else None,
        down=random(6, 1) if branched else None,
        up=random(1, 5) if branched else None,
        input_mean=mean if centred else None,
        input_factor=factor if scaled else None,
    )
    before = linear.apply(x).double()
    after = linear.with_branch(down, up, torch.float32).apply(x).double()
    torch.testing.assert_close(after - before, x.double() @ down.double() @ up.double(), atol=1e-4, rtol=1e-4)
