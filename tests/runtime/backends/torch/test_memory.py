"""The torch backend on a device that runs out of memory: what it does before it gives up, and what it frees."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.runtime import TorchOptions  # noqa: E402
from kontext.runtime.backends.torch import memory  # noqa: E402
from kontext.runtime.backends.torch import weights as torch_weights  # noqa: E402
from kontext.runtime.backends.torch.advice import Device, streamed  # noqa: E402
from kontext.runtime.backends.torch.backend import TorchBackend  # noqa: E402
from kontext.runtime.bundle import Bundle  # noqa: E402

IDS = {"input_ids": np.arange(154).reshape(2, 77)}


def backend(folder: Path, **options: Any) -> TorchBackend:
    return TorchBackend(Bundle.open(folder), "cpu", TorchOptions(**options))


class Exhausted:
    """Raises what PyTorch does, the first few times that it is called, and then does what it stands for."""

    def __init__(self, function: Any, times: int) -> None:
        self.function, self.left = function, times

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.function(*arguments, **options)


def test_a_network_that_does_not_fit_has_its_linears_brought_one_by_one(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text encoder beside a transformer that stays: the same numbers, and no linear's weight placed ahead."""
    wanted = backend(tiny_bundle).run("text_encoder", IDS)
    placed: list[int] = []
    moved: list[int] = []
    place, to_device = torch_weights.place, torch_weights.to_device

    def counted(network: Any, weights: Any) -> None:
        placed.append(len(weights))
        place(network, weights)

    def moving(part: Any, device: Any) -> Any:
        moved.append(isinstance(part, torch_weights.StoredLinear))
        return to_device(part, device)

    short = backend(tiny_bundle)
    monkeypatch.setattr("kontext.runtime.backends.torch.backend.place", Exhausted(counted, 1))
    monkeypatch.setattr("kontext.runtime.backends.torch.backend.to_device", moving)
    found = short.run("text_encoder", IDS)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    whole = len(short.networks["text_encoder"].host)
    assert placed == [whole]
    assert sum(moved[:whole]) > 0
    assert not any(moved[whole:])


def test_a_picture_is_decoded_in_tiles_only_when_nothing_else_helps(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float32)
    wanted = backend(tiny_bundle).run("vae_decoder", {"latents": latents})["image"]
    for times, tiles in ((1, False), (2, True)):
        short = backend(tiny_bundle)
        short.networks["vae_decoder"] = network = short.load_network("vae_decoder")
        monkeypatch.setattr(network.module, "forward", Exhausted(network.module.forward, times))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = short.run("vae_decoder", {"latents": latents})["image"]
        assert any("decoded in tiles" in str(each.message) for each in told) == tiles
        assert np.allclose(found, wanted, atol=1e-5)  # a picture of one tile


def test_what_was_half_read_is_gone_before_room_is_counted(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is about the memory that can be had, and weights of a network that did not fit are not in the way."""
    held: list[Any] = []

    def load(*_: Any) -> None:
        half = torch.zeros(10)
        held.append(weakref.ref(half))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def counted(_device: Any) -> Device:
        gc.disable()  # by itself, not by the collector's luck
        try:
            assert held
            assert held[0]() is None
        finally:
            gc.enable()
        return Device(10**9, 2 * 10**9)

    short = backend(tiny_bundle)
    monkeypatch.setattr(short, "load_network", load)
    monkeypatch.setattr(Device, "of", counted)
    with pytest.raises(KontextError, match=r"of 2\.00 GB are available"):
        short.run("text_encoder", IDS)


def test_a_dropped_step_gives_its_weights_back_at_once(tiny_bundle: Path) -> None:
    """Not when the collector comes by: the next network wants the room now."""
    for options in ({}, {"cache": 0.1, "reuse_reference": 2}):
        held = backend(tiny_bundle, **options)
        gc.disable()
        try:
            held.transformer = step = held.load_transformer()
            whole = step.step
            weight = weakref.ref(whole.weights.single[0].linear2.stored.weight)  # type: ignore[attr-defined]
            del step, whole
            if not options:  # nothing but counts of references
                held.transformer = None
                assert weight() is None
            held.transformer = held.transformer or held.load_transformer()
            held.release("transformer")
            assert weight() is None
        finally:
            gc.enable()


def test_a_step_that_cannot_be_captured_runs_uncaptured(monkeypatch: pytest.MonkeyPatch) -> None:
    step = memory.GraphedStep(lambda x: x + 1, torch.device("cuda"))
    tries = Exhausted(None, 9)
    monkeypatch.setattr(step, "capture", tries)
    assert [float(step({"x": torch.tensor(value)})) for value in (1.0, 2.0)] == [2, 3]
    assert tries.left == 8  # tried once


def test_a_share_of_the_gpu_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * 10**9, 24 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10**9)
    device = torch.device("cuda")
    for share, expected in ((1.0, (20, 24)), (0.5, (11, 12))):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _, share=share: share)
        found = Device.of(device)
        assert (found.free // 10**9, found.total // 10**9, found.capability) == (*expected, 89)


class Driver:
    """Registers host memory as CUDA does, by whole pages, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert (address % 4096, size % 4096, flags) == (0, 0, 0)
        if sum(self.held.values()) + size > self.limit:
            return 2
        self.held[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.held[address]
        return 0


@pytest.mark.parametrize("limit", [10**6, 0])
def test_page_locked_memory_is_as_large_as_what_is_in_it_and_given_back(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(limit)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    launched = []
    monkeypatch.setattr(torch, "ones", lambda *_, device: launched.append(device))
    tensors = (
        torch.randn(300, 70),
        torch.randn(3, 5).to(torch.float8_e4m3fn).t(),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.empty(0, 4),
    )
    copies = memory.page_locked(tensors, torch.device("cuda"))
    for copy, tensor in zip(copies, tensors, strict=True):
        assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(copy.float(), tensor.float())
    assert sorted(driver.held.values()) == ([4096, 4096, 86016] if limit else [])
    assert launched == ([] if limit else ["cuda"] * 3)  # takes CUDA's pending error along
    view = copies[0][:2]
    del copies, copy
    assert len(driver.held) == (1 if limit else 0)  # for as long as a view is there
    del view
    assert not driver.held


def test_what_is_there_while_linears_come_one_by_one(tiny_bundle: Path) -> None:
    short = backend(tiny_bundle)
    module = short.load_network("text_encoder")
    linears = {
        name: sum(each.nbytes for each in (part.weight, part.bias) if each is not None)
        for name, part in module.host.items()
        if isinstance(part, torch_weights.StoredLinear)
    }
    others = sum(part.nbytes for part in module.host.values() if isinstance(part, torch.Tensor))
    sizes = {
        f"{name}.{end}": part.nbytes
        for name, value in module.host.items()
        for end, part in (
            (("weight", value.weight), ("bias", value.bias))
            if isinstance(value, torch_weights.StoredLinear)
            else (("", value),)
        )
        if part is not None
    }
    found = streamed(short.config, "text_encoder", {name.rstrip("."): size for name, size in sizes.items()})
    assert found == others + max(linears.values())
