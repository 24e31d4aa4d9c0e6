"""Stub libraries for ONNX Runtime's CUDA provider. The real one loads them in tests/install/test_cuda_placement.py."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kontext.bench.fake_gpu import onnxruntime_libraries as libraries
from kontext.bench.fake_gpu.wrapper import onnxruntime_environment
from kontext.errors import KontextError

PROVIDER = """
int cudaSetDevice(int); int cublasCreate_v2(void**); int cublasLtCreate(void**); int curandCreate(void**);
int cudaOfTheFuture(void);
int provider(void) {
    void* handle;
    return cudaSetDevice(0) + cublasCreate_v2(&handle) + cublasLtCreate(&handle) + curandCreate(&handle)
        + cudaOfTheFuture();
}
"""


def test_every_function_that_the_provider_takes_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = tmp_path / "provider.so"
    (tmp_path / "provider.c").write_text(PROVIDER)
    command = [libraries.compiler(), "-shared", "-fPIC", str(tmp_path / "provider.c"), "-o", str(provider)]
    subprocess.run(command, check=True)
    monkeypatch.setattr(libraries, "cuda_provider", lambda: provider)
    folder = tmp_path / "stubs"
    libraries.build_onnxruntime_libraries(folder)
    for name in (*libraries.MATH, libraries.RUNTIME):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    assert ctypes.CDLL(str(provider)).provider() == 0
    (made,) = [path.stat().st_mtime_ns for path in folder.glob("libcuda.so.1")]
    libraries.build_onnxruntime_libraries(folder)
    assert (folder / "libcuda.so.1").stat().st_mtime_ns == made  # nothing is built twice
    variables = onnxruntime_environment(folder, 12 << 30, 89)
    assert (variables["FAKE_GPU_MEMORY"], variables["FAKE_GPU_ARCHITECTURE"]) == (str(12 << 30), "89")
    assert str(folder / "libcudart.so.13") in variables["LD_PRELOAD"]


def test_without_the_gpu_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "cuda_provider", lambda: None)
    with pytest.raises(KontextError, match="onnxruntime-gpu is not installed"):
        libraries.build_onnxruntime_libraries(tmp_path)
