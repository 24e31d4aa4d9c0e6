"""Weight files as they are written, in one go and in two."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from kontext.export.graph.interface import linear_weights  # noqa: E402
from kontext.export.weights import write  # noqa: E402
from kontext.export.weights.plan import WeightPlan, plan_weights  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant.formats import FORMATS  # noqa: E402
from kontext.quant.quantize import quantize_weight  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402


def planned(
    checkpoint: Path, name: str, compute: str, quantization: str | None
) -> tuple[WeightPlan, Checkpoint]:
    opened = Checkpoint.open(checkpoint)
    recipe = choose_recipe(tuple(NETWORKS), 1, compute, quantization)
    constants = {"table": torch.arange(6).reshape(2, 3)}
    linears = linear_weights(name, opened.config)
    return plan_weights(opened.networks[name], recipe, linears, constants), opened


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("compute", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("quantization", [None, "fp8", "int8", "int4"], ids=str)
def test_the_file_is_the_plan(
    tiny_checkpoint: Path, tmp_path: Path, name: str, compute: str, quantization: str | None
) -> None:
    plan, checkpoint = planned(tiny_checkpoint, name, compute, quantization)
    network, path, progress = checkpoint.networks[name], tmp_path / "w.safetensors", []
    digest = write.write_weights(plan, network, path, 0, lambda _: None, progress.append)
    data = path.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert len(data) == plan.size == sum(progress)
    stored = load_file(path)
    assert set(stored) == set(plan.tensors())
    assert torch.equal(stored["table"], plan.constants["table"])
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[plan.compute]
    for item in plan.items[1:]:
        weight = network.read(item.weight)
        weight = weight.t() if item.transpose else weight
        if item.layer is not None and item.layer.format in FORMATS:
            for tensor, expected in zip(
                item.tensors, quantize_weight(weight, item.layer, dtype), strict=True
            ):
                ours, theirs = (
                    each.contiguous().view(torch.uint8) for each in (stored[tensor.name], expected)
                )
                assert torch.equal(ours, theirs)
        else:
            assert torch.equal(stored[item.weight], weight.to(stored[item.weight].dtype))
        for tensor in item.tensors:
            raw = stored[tensor.name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert data[tensor.start : tensor.stop] == raw


@pytest.mark.parametrize("kept", [0, 1, 9, 25])
def test_going_on_gives_the_same_file(
    tiny_checkpoint: Path, tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, checkpoint = planned(tiny_checkpoint, "transformer", "fp32", None)
    network, path = checkpoint.networks["transformer"], tmp_path / "w"
    digest = write.write_weights(plan, network, path, 0, lambda _: None, lambda _: None)
    whole = path.read_bytes()
    position = plan.items[kept].tensors[-1].stop + 3  # in the middle of the next weight
    path.write_bytes(whole[:position] + b"rubbish" * 9)
    converted = []
    original = write.convert
    monkeypatch.setattr(
        write,
        "convert",
        lambda plan, item, source: converted.append(item) or original(plan, item, source),
    )
    progress: list[int] = []
    assert write.write_weights(plan, network, path, position, lambda _: None, progress.append) == digest
    assert path.read_bytes() == whole
    assert converted == list(plan.items[kept + 1 :])
    assert sum(progress) == plan.size
