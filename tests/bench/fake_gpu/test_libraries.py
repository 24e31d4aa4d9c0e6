"""The fake GPU's libraries compile, and refuse what a GPU refuses."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from kontext.bench.fake_gpu.libraries import build_libraries
from kontext.bench.fake_gpu.wrapper import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the libraries are for Linux")

INVALID, EXHAUSTED, CAPTURING = 1, 2, 900


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake_gpu")
    build_libraries(folder)
    return folder


@pytest.fixture
def runtime(built: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FAKE_GPU_MEMORY", str(64 << 20))
    return ctypes.CDLL(str(built / "libfake_gpu_runtime.so"))


def test_memory_ends_where_the_card_does(runtime: Any) -> None:
    first, second = ctypes.c_void_p(), ctypes.c_void_p()
    assert runtime.cudaMalloc(ctypes.byref(first), ctypes.c_size_t(60 << 20)) == 0
    assert runtime.cudaMalloc(ctypes.byref(second), ctypes.c_size_t(8 << 20)) == EXHAUSTED
    assert (second.value, runtime.cudaGetLastError(), runtime.cudaGetLastError()) == (None, EXHAUSTED, 0)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
    assert (free.value, total.value) == (4 << 20, 64 << 20)
    back = ctypes.create_string_buffer(b"x" * 8, 8)
    assert runtime.cudaMemcpy(back, first, ctypes.c_size_t(8), 2) == 0
    assert back.raw == bytes(8)
    assert runtime.cudaFree(first) == 0
    assert runtime.cudaMalloc(ctypes.byref(second), ctypes.c_size_t(8 << 20)) == 0
    assert runtime.cudaFree(second) == 0


def test_what_a_capture_refuses(runtime: Any, capfd: pytest.CaptureFixture[str]) -> None:
    graph = ctypes.c_void_p()
    assert runtime.cudaStreamBeginCapture(None, 0) == 0
    try:
        assert runtime.cudaDeviceSynchronize() == CAPTURING
        assert runtime.cudaEventSynchronize(None) == CAPTURING
    finally:
        assert runtime.cudaStreamEndCapture(None, ctypes.byref(graph)) == 0
    assert runtime.cudaGetLastError() == CAPTURING
    assert runtime.cudaDeviceSynchronize() == 0
    assert "fake GPU: cudaDeviceSynchronize during graph capture" in capfd.readouterr().err


@pytest.mark.parametrize(("architecture", "limit"), [(89, 99), (90, 227)])
def test_invalid_launches_fail(
    architecture: int,
    limit: int,
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment(built, 10**9, architecture).items():
        if name.startswith("FAKE_GPU_"):
            monkeypatch.setenv(name, value)
    driver = ctypes.CDLL(str(built / "libcuda.so.1"))
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), b"not machine code") == 200
    assert driver.cuModuleLoadData(ctypes.byref(module), b"\x7fELF") == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"attention") == 0

    def launch(programs: int, shared: int, threads: int = 256) -> int:
        return int(driver.cuLaunchKernel(function, 1, programs, 1, threads, 1, 1, shared, None, None, None))

    assert driver.cuFuncSetAttribute(function, 8, limit * 1024 + 1) == INVALID
    assert launch(24, 60000) == INVALID  # more than 48 KiB without opting in
    assert driver.cuFuncSetAttribute(function, 8, limit * 1024) == 0
    assert [launch(24, limit * 1024), launch(70000, 0), launch(1, 0, 2048)] == [0, INVALID, INVALID]
    assert "attention requests" in capfd.readouterr().err
