"""ONNX Runtime as a backend: the choice of a device, bound I/O, sessions that come and go, broken graphs."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import ComputationError, KontextError
from kontext.runtime import OnnxRuntimeOptions, Pipeline
from kontext.runtime.backends import onnxruntime as onnxruntime_backend
from kontext.runtime.backends.onnxruntime import (
    OnnxRuntimeBackend,
    choose_device,
    cuda_failure,
)
from kontext.runtime.bundle import Bundle

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("asked", "available", "chosen"),
    [
        ("auto", [CPU], "cpu"),
        ("auto", [CUDA, CPU], "cuda"),
        ("cpu", [CUDA, CPU], "cpu"),
    ],
)
def test_the_device_is_one_that_is_there(asked: str, available: list[str], chosen: str) -> None:
    assert choose_device(asked, available) == chosen


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        KontextError, match="CUDAExecutionProvider, which the installed onnxruntime does not have"
    ):
        choose_device("cuda", [CPU])


def backend_of(folder: Path, **options: Any) -> OnnxRuntimeBackend:
    graphs = {name: entry.path for name, entry in Bundle.open(folder).graphs.items()}
    return OnnxRuntimeBackend(graphs, "cpu", **options)


def test_bound_inputs_and_outputs_are_the_same_numbers(tiny_bundle: Path) -> None:
    """The GPU's way of running, on the CPU's memory."""
    plain, bound = (Pipeline.load(tiny_bundle, device="cpu") for _ in range(2))
    bound.backend.bound = True  # type: ignore[attr-defined]
    for reference in (None, Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50)):
        ours = bound.edit(reference, "make it blue", steps=3)
        assert np.array_equal(np.asarray(ours), np.asarray(plain.edit(reference, "make it blue", steps=3)))
    held = bound.backend.hold({"a": np.ones((2, 3), np.float32), "none": np.ones((1, 0, 4), np.float32)})
    assert type(held["a"]).__name__ == "OrtValue"
    assert isinstance(held["none"], np.ndarray)  # there is nothing to hold in no tokens


def test_sessions_are_made_when_needed_and_dropped_when_told(tiny_bundle: Path) -> None:
    backend = backend_of(tiny_bundle, options=OnnxRuntimeOptions(threads=1))
    assert not backend.sessions
    outputs = backend.run("text_encoder", {"input_ids": np.ones((2, 77), np.int64)})
    assert outputs["pooled"].shape == (2, 32)
    assert list(backend.sessions) == ["text_encoder"]
    assert backend.sessions["text_encoder"].get_session_options().intra_op_num_threads == 1
    backend.release("text_encoder", "transformer")
    assert not backend.sessions


def test_low_memory_holds_nothing_between_operators(tiny_bundle: Path) -> None:
    ids = {"input_ids": np.ones((2, 77), np.int64)}
    plain, lean = (backend_of(tiny_bundle, low_memory=low) for low in (False, True))
    assert np.array_equal(lean.run("text_encoder", ids)["pooled"], plain.run("text_encoder", ids)["pooled"])
    options = lean.sessions["text_encoder"].get_session_options()
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinities here")
def test_threads_are_the_cores_that_the_process_may_use(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 5, 6})
    session = backend_of(tiny_bundle).session("text_encoder")
    assert session.get_session_options().intra_op_num_threads == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    assert backend_of(tiny_bundle).threads is None  # all of them: ONNX Runtime knows which are real
    assert backend_of(tiny_bundle, options=OnnxRuntimeOptions(threads=2)).threads == 2


def test_threads_do_not_spin_after_a_run(tiny_bundle: Path) -> None:
    """They would take the cores from the session of the next graph. Time of the processor, not of the clock."""
    backend = backend_of(tiny_bundle, options=OnnxRuntimeOptions(threads=2))
    backend.run("text_encoder", {"input_ids": np.ones((1, 77), np.int64)})
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.02


def test_inputs_that_do_not_fit_are_one_line(tiny_bundle: Path) -> None:
    with pytest.raises(KontextError, match="text_encoder failed in ONNX Runtime") as caught:
        backend_of(tiny_bundle).run("text_encoder", {"input_ids": np.ones((1, 5), np.int64)})
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_none_and_weights_that_are_cut(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    backend = backend_of(folder)
    (folder / "transformer.onnx").write_bytes(b"not a graph")
    with pytest.raises(KontextError, match=r"transformer\.onnx cannot be loaded"):
        backend.session("transformer")
    (folder / "weights" / "vae_decoder.safetensors").write_bytes(b"")
    with pytest.raises(KontextError, match=r"vae_decoder\.onnx cannot be loaded") as caught:
        backend.session("vae_decoder")
    assert "\n" not in str(caught.value)


def test_cuda_that_cannot_start(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime built for CUDA on a machine without it: an error if asked for, else the CPU."""
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(OnnxRuntimeBackend, "providers", lambda _self: [(CPU, {})])
    graphs = {name: entry.path for name, entry in Bundle.open(tiny_bundle).graphs.items()}
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so.13: no"))
    monkeypatch.setattr(onnxruntime_backend, "missing_driver", lambda: "")
    with pytest.raises(
        KontextError, match=r"could not be started \(libcublas.so.13 cannot be loaded\): check"
    ):
        OnnxRuntimeBackend(graphs, "cuda").session("text_encoder")
    pipe = Pipeline.load(tiny_bundle, backend="onnxruntime")
    with pytest.warns(UserWarning, match="no usable GPU"):
        pipe.edit(None, "x", steps=1)


def test_cuda_says_why_it_fails() -> None:
    """In ONNX Runtime 1.31's message on a machine without a GPU."""
    message = (
        "/onnxruntime_src/cuda_call.cc:154 std::conditional_t<THRW, void, onnxruntime::common::Status> CUDA failure "
        "100: no CUDA-capable device is detected ; GPU=-1 ; hostname=host ; file=provider.cc ; line=355 ; expr=f(0);"
    )
    assert cuda_failure(RuntimeError(message)) == "no CUDA-capable device is detected"
    assert cuda_failure(RuntimeError("no such file")) is None


class Failing:
    """A session that ONNX Runtime made for CUDA, and that fails as the provider does."""

    message = ""

    def __init__(self, session: Any) -> None:
        self.session = session

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, _binding: Any) -> None:
        raise RuntimeError(self.message)


def on_cuda(monkeypatch: pytest.MonkeyPatch, message: str, *, at_load: bool = False) -> None:
    """Makes CUDA a provider that starts, and then fails with ONNX Runtime's `message` at a load or the first run."""
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime_backend, "missing_driver", lambda: "")
    make = OnnxRuntimeBackend.load
    monkeypatch.setattr(Failing, "message", message)

    def load(self: OnnxRuntimeBackend, graph: str, data: bytes) -> Any:
        if self.device == "cuda" and at_load:
            raise RuntimeError(message)
        made = make(self, graph, data)
        return Failing(made) if self.device == "cuda" else made

    monkeypatch.setattr(OnnxRuntimeBackend, "load", load)
    monkeypatch.setattr(OnnxRuntimeBackend, "providers", lambda _self: [(CPU, {})])


GONE = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 46: all CUDA-capable devices are busy or unavailable ; GPU=0"
FULL = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:359 Failed to allocate memory for requested buffer"


@pytest.mark.parametrize("at_load", [True, False])
@pytest.mark.parametrize(
    ("message", "reason"),
    [(GONE, "devices are busy or unavailable"), (FULL, "out of memory: try a smaller --size")],
)
def test_a_gpu_that_fails(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, message: str, reason: str, at_load: bool
) -> None:
    """One line that names the provider, and what would work, if it was asked for; else the CPU's picture, and a
    warning. The messages are ONNX Runtime's own."""
    plain = Pipeline.load(tiny_bundle, device="cpu").edit(None, "x", steps=1)
    on_cuda(monkeypatch, message, at_load=at_load)
    with pytest.raises(ComputationError, match=rf" on {CUDA}: .*{reason}.*; or use --device cpu$") as caught:
        Pipeline.load(tiny_bundle, device="cuda").edit(None, "x", steps=1)
    assert "\n" not in str(caught.value)
    with pytest.warns(
        UserWarning, match=f"no usable GPU, running on the CPU: .* on {CUDA}: .*{reason}"
    ) as warned:
        picture = Pipeline.load(tiny_bundle, backend="onnxruntime").edit(None, "x", steps=1)
    assert len(warned) == 1
    assert np.array_equal(np.asarray(picture), np.asarray(plain))


NO_KERNEL = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no implementation for Add(14) node 'node_add_4'"
NO_DRIVER, NO_LIBRARY = "there is no NVIDIA driver, libcuda.so.1", "libcublas.so.13 cannot be loaded"


@pytest.mark.parametrize(
    ("driver", "printed", "reason"),
    [
        (NO_DRIVER, None, NO_DRIVER),
        ("", "Failed to load libcublas.so.13: no", NO_LIBRARY),
        ("", None, None),
    ],
)
def test_kernels_that_are_missing_with_cuda(
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    printed: str | None,
    reason: str | None,
) -> None:
    """Of a bf16 bundle: ONNX Runtime 1.32 names an operator of the CPU's, whatever keeps CUDA from starting."""
    on_cuda(monkeypatch, NO_KERNEL, at_load=True)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: print(printed) if printed else None)
    monkeypatch.setattr(onnxruntime_backend, "missing_driver", lambda: driver)
    with pytest.raises(ComputationError) as caught:
        Pipeline.load(tiny_bundle, device="cuda").edit(None, "x", steps=1)
    started = f"device 'cuda' could not be started ({reason}): check the driver (nvidia-smi)"
    assert str(caught.value).startswith(started) == (reason is not None)
    assert ("node_add_4" in str(caught.value)) == (reason is None)
    assert str(caught.value).endswith("; or use --device cpu")


def test_a_gpu_that_disappears_after_it_has_run_is_an_error(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held on it is lost, so nothing goes on elsewhere."""
    backend = backend_of(tiny_bundle)
    backend.automatic, backend.device, backend.has_run = True, "cuda", True
    with pytest.raises(ComputationError, match=r"transformer failed on .*; or use --device cpu$"):
        backend.fall_back("transformer failed on CUDAExecutionProvider: gone")


def test_onnx_runtimes_own_fallback_is_off(tiny_bundle: Path) -> None:
    """It would print on stdout, and compute on the CPU although a GPU was asked for."""
    assert not backend_of(tiny_bundle).session("text_encoder")._enable_fallback


def test_fp8_before_onnx_runtime_1_32(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words; `tests/install` runs such a bundle with the real 1.31.1."""
    import onnxruntime

    create, tried = onnxruntime.InferenceSession, []

    def session(path: str, options: Any, **words: object) -> object:
        tried.append(options)
        if len(tried) == 1:
            raise RuntimeError(
                "[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. Type Error: Type "
                "'tensor(float8e4m3fn)' of input parameter (a.weight/QuantizeLinear_2_output_0) of operator "
                "(MatMulIntegerToFloat) in node (node_matmul_1_2) is invalid."
            )
        return create(path, options, **words)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert Pipeline.load(tiny_bundle, device="cpu").backend.session("modulation").get_outputs()
    assert len(tried) == 2
    assert tried[1].get_session_config_entry("session.disable_quant_qdq") == "1"
