"""ONNX Runtime as a backend: the choice of a device, bound I/O, sessions that come and go, broken graphs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.runtime import OnnxRuntimeOptions, Pipeline
from kontext.runtime.backends.onnxruntime import OnnxRuntimeBackend, choose_device
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
    with pytest.raises(KontextError, match="could not be started: check the driver"):
        OnnxRuntimeBackend(graphs, "cuda").session("text_encoder")
    pipe = Pipeline.load(tiny_bundle, device="auto")
    with pytest.warns(UserWarning, match="no usable GPU"):
        pipe.edit(None, "x", steps=1)
