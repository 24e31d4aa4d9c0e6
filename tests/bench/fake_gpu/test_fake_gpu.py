"""The GPU that computes nothing: its libraries compile, and refuse what a GPU refuses. PyTorch on it needs a build for
CUDA, which CI does not have."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from kontext.bench.fake_gpu import __main__ as fake_gpu  # noqa: E402
from kontext.bench.fullsize import synthetic  # noqa: E402
from kontext.bench.memory import vram_fit  # noqa: E402
from kontext.errors import KontextError  # noqa: E402
from kontext.model.config import KontextConfig  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")

INVALID, EXHAUSTED, CAPTURING = 1, 2, 900


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake_gpu")
    fake_gpu.build(folder)
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
    assert "fake GPU: cudaDeviceSynchronize while a graph is captured" in capfd.readouterr().err


@pytest.mark.parametrize(("architecture", "limit"), [(89, 99), (90, 227)])
def test_launches_that_no_gpu_takes(
    architecture: int,
    limit: int,
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in fake_gpu.environment(built, 10**9, architecture).items():
        if name.startswith("FAKE_GPU_"):
            monkeypatch.setenv(name, value)
    driver = ctypes.CDLL(str(built / "libcuda.so.1"))
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), b"no machine code") == 200
    assert driver.cuModuleLoadData(ctypes.byref(module), b"\x7fELF") == 0
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"attention") == 0

    def launch(programs: int, shared: int, threads: int = 256) -> int:
        return int(driver.cuLaunchKernel(function, 1, programs, 1, threads, 1, 1, shared, None, None, None))

    assert driver.cuFuncSetAttribute(function, 8, limit * 1024 + 1) == INVALID
    assert launch(24, 60000) == INVALID  # nobody opted in for more than 48 KiB
    assert driver.cuFuncSetAttribute(function, 8, limit * 1024) == 0
    assert [launch(24, limit * 1024), launch(70000, 0), launch(1, 0, 2048)] == [0, INVALID, INVALID]
    assert "attention asks for" in capfd.readouterr().err


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fake_gpu.main(["--memory", "much", "--", "true"]) == 2
    assert fake_gpu.main(["--architecture", "sm_75", "--", "true"]) == 2
    if torch.version.cuda is None:
        assert fake_gpu.main(["--", "true"]) == 2
        assert "it must be a build for CUDA 13" in capsys.readouterr().err
    monkeypatch.setattr(fake_gpu, "check_torch", lambda _: None)
    words = "import os, sys; sys.exit(int(os.environ['FAKE_GPU_MEMORY']) // 10**9)"
    assert fake_gpu.main(["--memory", "12GB", "--", sys.executable, "-c", words]) == 12


def test_a_hollow_checkpoint_is_whole_and_takes_no_room(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    done = subprocess.run(
        [sys.executable, "-m", "kontext.bench.fullsize.synthetic", str(folder), "--hollow"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(path.stat().st_blocks * 512 for path in folder.rglob("*.safetensors")) < 10e6
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert size == pytest.approx(synthetic.size_of(KontextConfig("flux")), rel=1e-3)
    assert synthetic.main([str(folder)]) == 2


def test_the_table_of_what_fits() -> None:
    rows = [
        {"bundle": "fp8", "card": "12GB", "way": "resident", "peak": 11_900_000_000, "tiled": True},
        {"bundle": "fp8", "card": "12GB", "way": "--offload", "peak": 1_500_000_000, "tiled": False},
        {"bundle": "fp8", "card": "8GB", "way": "resident", "refused": "the GPU has no room for transformer"},
    ]
    table = vram_fit.table(rows)
    assert table.header == ["card", "fp8, resident", "fp8, --offload"]
    assert table.rows == [["12GB", "11.9 GB (tiles)", "1.5 GB"], ["8GB", "no", ""]]


def test_cards_need_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert vram_fit.main([str(tmp_path)]) == 2
    assert "run this under `python -m kontext.bench.fake_gpu`" in capsys.readouterr().err
    with pytest.raises(KontextError, match="is not a size"):
        vram_fit.parse_bytes("twelve")
