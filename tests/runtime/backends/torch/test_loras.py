"""LoRAs as branches of stored linears, against float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kontext.bench.quantspeed.step import transformer_inputs  # noqa: E402
from kontext.model.config import KontextConfig, TransformerConfig  # noqa: E402
from kontext.model.lora_slots import network_slots, row_counts  # noqa: E402
from kontext.runtime import Pipeline, TorchOptions  # noqa: E402
from kontext.runtime.backends.torch import weights  # noqa: E402
from kontext.runtime.backends.torch.loras import linear_branches  # noqa: E402
from kontext.runtime.backends.torch.weights import StoredLinear  # noqa: E402
from kontext.runtime.lora import NO_LORAS, Loras  # noqa: E402

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


@pytest.fixture(scope="module")
def quantized(
    slots_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A format's bundle with slots."""
    pytest.importorskip("onnx")
    from kontext.export.cli import main

    made = {"fp32": slots_bundle}

    def bundle(format: str) -> Path:
        if format not in made:
            made[format] = folder = tmp_path_factory.mktemp("slots") / format
            words = [tiny_checkpoint, "-o", folder, "--fp32", f"--{format}", "--lora-slots", 8, "--quiet"]
            assert main.main([str(word) for word in words]) == 0
        return made[format]

    return bundle


def loras_of(pipe: Pipeline, seed: int, rank: int) -> Loras:
    """Random LoRAs for every linear."""
    assert pipe.bundle.lora_slots is not None
    source = np.random.default_rng(seed)
    inputs = {
        graph: {
            name: source.standard_normal((count, rank), dtype=np.float32) * np.float32(0.05)
            for name, count in zip(("lora_down", "lora_up"), rows, strict=True)
        }
        for graph, rows in pipe.bundle.lora_slots.rows.items()
    }
    return Loras((), inputs)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("fp32", {}),
        ("fp32", {"offload": True}),
        ("fp32", {"cache": 0.1, "reuse_reference": 2}),
        ("fp8", {"activations": "fp8"}),
        ("int8", {"activations": "int8"}),
        ("int4", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:--offload saves no memory on a CPU")
def test_other_loras_change_the_branches_alone(
    quantized: Callable[[str], Path],
    format: str,
    options: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The outputs are those of a new backend, to the bit, and no weights are read again."""
    opened: list[Path] = []
    opener = weights.safe_open

    def counted(path: str, **more: object) -> object:
        opened.append(Path(path))
        return opener(path, **more)

    monkeypatch.setattr(weights, "safe_open", counted)

    def fresh() -> Pipeline:
        backend = TorchOptions(**options)  # type: ignore[arg-type]
        return Pipeline.load(quantized(format), device="cpu", backend=backend, low_memory=False)

    kept = fresh()
    monkeypatch.setattr(kept.backend, "release", lambda *graphs: None)
    loras = [NO_LORAS, loras_of(kept, 1, 3), loras_of(kept, 2, 5), NO_LORAS]
    found = []
    for each in loras:
        given = transformer_inputs(kept, 16, each)
        found.append(kept.backend.run("transformer", given)["velocity"])
    assert len(opened) == len(set(opened))
    for each, velocity in zip(loras[:3], found[:3], strict=True):
        new = fresh()
        given = transformer_inputs(new, 16, each)
        assert np.array_equal(new.backend.run("transformer", given)["velocity"], velocity)
    assert np.array_equal(found[0], found[3])
    assert not np.allclose(found[0], found[1], atol=1e-3)
    assert not np.allclose(found[1], found[2], atol=1e-3)
