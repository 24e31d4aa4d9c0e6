"""The driver's API through ctypes: what is said without a driver, a GPU or memory, and how it is called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kontext.errors import KontextError
from kontext.runtime import cuda_driver
from kontext.runtime.cuda_driver import CudaDriver


class FakeDriver:
    """libcuda's functions, which note their calls."""

    def __init__(self, major: int = 8, minor: int = 9, gpus: int = 1) -> None:
        self.capability, self.gpus = {75: major, 76: minor}, gpus
        self.status: dict[str, int] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = self.gpus
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = self.capability[arguments[1].value]
            elif name == "cuMemAlloc_v2":
                arguments[0]._obj.value = 4096
            elif name == "cuGetErrorString":
                arguments[1]._obj.value = b"it is broken"
            return self.status.get(name, 0)

        return function


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "library_name", lambda: "libcuda-that-is-not-there.so")
    with pytest.raises(KontextError, match="there is no NVIDIA driver on this machine"):
        CudaDriver()
    with pytest.raises(KontextError, match=r"engines need a GPU: use --backend torch$"):
        CudaDriver(instead="use --backend torch")
    assert not cuda_driver.has_gpu()


def test_without_a_gpu() -> None:
    with pytest.raises(KontextError, match="there is no GPU 0 on this machine: it has 0"):
        CudaDriver(library=FakeDriver(gpus=0))


@pytest.mark.parametrize(("major", "minor", "target"), [(8, 9, "sm89"), (12, 0, "sm120")])
def test_the_architecture(major: int, minor: int, target: str) -> None:
    assert CudaDriver(library=FakeDriver(major, minor)).target == target


def test_errors_are_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeDriver()
    library.status["cuInit"] = 999
    with pytest.raises(KontextError, match="the GPU's driver failed in cuInit: it is broken"):
        CudaDriver(library=library)
    library.status = {"cuMemAlloc_v2": cuda_driver.OUT_OF_MEMORY}
    with pytest.raises(KontextError, match="out of GPU memory: try a smaller --size"):
        CudaDriver(library=library).allocate(1)


def test_memory_is_rounded_up_and_freed_once() -> None:
    library = FakeDriver()
    driver = CudaDriver(library=library)
    memories = [driver.allocate(size) for size in (0, 1, 256, 257)]
    assert [memory.size for memory in memories] == [256, 256, 256, 512]
    memories[0].free()
    del memories
    assert library.calls.count("cuMemFree_v2") == 4


def test_nothing_is_copied_of_an_empty_array() -> None:
    library = FakeDriver()
    driver = CudaDriver(library=library)
    memory, empty = driver.allocate(0), np.empty(0, np.float32)
    driver.upload(memory, empty, 0)
    driver.download(memory, empty)
    assert not [name for name in library.calls if name.startswith("cuMemcpy")]


def test_a_capture_that_fails_leaves_no_graph() -> None:
    library = FakeDriver()
    library.status["cuGraphInstantiateWithFlags"] = 999
    driver = CudaDriver(library=library)
    driver.begin_capture()
    with pytest.raises(KontextError, match="failed in cuGraphInstantiateWithFlags"):
        driver.end_capture()
    assert library.calls.count("cuGraphDestroy") == 1
