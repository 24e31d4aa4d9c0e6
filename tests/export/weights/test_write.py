"""Weight files as they are written, in one go and in two."""

from __future__ import annotations

import hashlib
import itertools
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.weights import write  # noqa: E402
from kontext.export.weights.plan import WeightPlan, plan_weights  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS, linear_weights  # noqa: E402
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
    digest = write.write_stream(write.weight_stream(plan, network), path, 0, lambda _: None, progress.append)
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
    digest = write.write_stream(write.weight_stream(plan, network), path, 0, lambda _: None, lambda _: None)
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
    assert (
        write.write_stream(
            write.weight_stream(plan, network), path, position, lambda _: None, progress.append
        )
        == digest
    )
    assert path.read_bytes() == whole
    assert converted == list(plan.items[kept + 1 :])
    assert sum(progress) == plan.size


def test_what_is_reported_as_synced_is_whole_weights_on_disk(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most the named number of bytes and one weight are lost to a power cut; the whole file is synced at the end."""
    monkeypatch.setattr(write, "SYNC_BYTES", 40_000)
    plan, checkpoint = planned(tiny_checkpoint, "transformer", "fp32", None)
    network, path, reported = checkpoint.networks["transformer"], tmp_path / "w", []
    synced: list[int] = []
    fsync = write.os.fsync
    monkeypatch.setattr(write.os, "fsync", lambda file: synced.append(file) or fsync(file))

    def on_sync(position: int) -> None:
        assert len(synced) == len(reported) + 1
        reported.append(position)
        assert path.stat().st_size >= position

    write.write_stream(write.weight_stream(plan, network), path, 0, on_sync, lambda _: None)
    assert reported[-1] == plan.size
    ends = [item.tensors[-1].stop for item in plan.items]
    assert set(reported) <= set(ends)
    largest = max(item.size for item in plan.items)
    steps = [after - before for before, after in itertools.pairwise([0, *reported])]
    assert len(steps) > 4
    assert all(40_000 <= step < 40_000 + largest + len(plan.header) for step in steps[:-1])


def test_a_fault_keeps_the_weights_before_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is raised, what was whole is on disk and reported, and going on from there gives the file."""
    plan, checkpoint = planned(tiny_checkpoint, "transformer", "fp32", None)
    network, path, reported = checkpoint.networks["transformer"], tmp_path / "w", []
    expected = write.write_stream(
        write.weight_stream(plan, network), tmp_path / "whole", 0, lambda _: None, lambda _: None
    )
    original = write.convert

    def convert(plan: WeightPlan, item: object, source: object) -> list:
        if item is plan.items[7]:
            raise KontextError("weight 7 is damaged")
        return original(plan, item, source)

    with monkeypatch.context() as patch:
        patch.setattr(write, "convert", convert)
        with pytest.raises(KontextError, match="weight 7 is damaged"):
            write.write_stream(write.weight_stream(plan, network), path, 0, reported.append, lambda _: None)
    assert reported == [plan.items[6].tensors[-1].stop]
    assert (
        write.write_stream(
            write.weight_stream(plan, network), path, reported[0], reported.append, lambda _: None
        )
        == expected
    )
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert reported[1:] == [plan.size]


def test_a_full_disk_is_that_fault(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a sync in another thread is raised too."""
    monkeypatch.setattr(write, "SYNC_BYTES", 1000)
    plan, checkpoint = planned(tiny_checkpoint, "modulation", "fp32", None)

    def on_sync(position: int) -> None:
        if position < plan.size:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write.write_stream(
            write.weight_stream(plan, checkpoint.networks["modulation"]),
            tmp_path / "w",
            0,
            on_sync,
            lambda _: None,
        )


def test_a_file_that_has_become_shorter_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan, checkpoint = planned(tiny_checkpoint, "modulation", "fp32", None)
    path = tmp_path / "w"
    path.write_bytes(plan.header)
    with pytest.raises(KontextError, match="has become shorter: export again"):
        write.write_stream(
            write.weight_stream(plan, checkpoint.networks["modulation"]),
            path,
            plan.size,
            lambda _: None,
            lambda _: None,
        )


def test_no_file_is_written_that_is_not_the_plan(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, checkpoint = planned(tiny_checkpoint, "modulation", "fp32", None)
    monkeypatch.setattr(write, "convert", lambda *_: [torch.zeros(3)])
    with pytest.raises(RuntimeError, match="table has 12 bytes instead of 48"):
        write.write_stream(
            write.weight_stream(plan, checkpoint.networks["modulation"]),
            tmp_path / "w",
            0,
            lambda _: None,
            lambda _: None,
        )


@pytest.mark.parametrize("ahead", [0, 20_000, 1 << 30])
def test_few_weights_are_in_memory_at_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Converted weights that wait take at most `AHEAD_BYTES`, or are a single one; they come in the plan's order."""
    monkeypatch.setattr(write, "AHEAD_BYTES", ahead)
    plan, checkpoint = planned(tiny_checkpoint, "transformer", "fp32", None)
    waiting, most, lock = [], [], threading.Lock()
    original = write.convert

    def convert(plan: WeightPlan, item: object, source: object) -> list:
        with lock:
            waiting.append(item)
            most.append((len(waiting), sum(each.size for each in waiting)))
        return original(plan, item, source)

    monkeypatch.setattr(write, "convert", convert)
    seen = []
    stream = write.weight_stream(plan, checkpoint.networks["transformer"])
    items = dict(zip(stream.pieces, plan.items, strict=True))
    for piece, _ in write.made(stream.pieces, stream.computes):
        seen.append(items[piece])
        with lock:
            waiting.remove(items[piece])
    assert seen == list(plan.items)
    # The caller holds the one that it writes: it counts until the next is asked for.
    assert all(count == 1 or size <= ahead for count, size in most)
    if ahead > plan.size:
        assert max(count for count, _ in most) > 1
