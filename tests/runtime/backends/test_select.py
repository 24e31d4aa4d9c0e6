"""Which backend a string, a device and a record select, and what is said where its library is missing."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from kontext.errors import BundleError, KontextError
from kontext.installation import install_command
from kontext.runtime import OnnxRuntimeOptions, OpenVINOOptions, Pipeline, TensorRTOptions, TorchOptions
from kontext.runtime.backends.onnxruntime import OnnxRuntimeBackend
from kontext.runtime.backends.select import find_options, open_fastest
from kontext.runtime.bundle import Bundle


@pytest.mark.parametrize(
    ("backend", "device", "record"),
    [
        ("onnxruntime", "auto", OnnxRuntimeOptions),
        ("onnxruntime", "cuda", OnnxRuntimeOptions),
        ("auto", "rtx", TensorRTOptions),
        ("auto", "tensorrt", TensorRTOptions),
        ("onnxruntime", "rtx", OnnxRuntimeOptions),  # and `check` refuses it
        ("auto", "openvino", OpenVINOOptions),
        ("auto", "openvino:gpu", OpenVINOOptions),
        ("openvino", "auto", OpenVINOOptions),
        ("openvino", "cpu", OpenVINOOptions),
        ("torch", "cpu", TorchOptions),
        ("torch", "rtx", TorchOptions),  # and `check` refuses it
    ],
)
def test_what_a_string_and_a_device_select(backend: str, device: str, record: type) -> None:
    assert type(find_options(backend, device)) is record


def test_options_reach_onnx_runtime(tiny_bundle: Path) -> None:
    backend = Pipeline.load(tiny_bundle, device="cpu", backend=OnnxRuntimeOptions(threads=3)).backend
    assert isinstance(backend, OnnxRuntimeBackend)
    assert backend.threads == 3


def test_without_pytorch(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kontext.runtime.backends as parent

    if hasattr(parent, "torch"):  # the package is imported again below, and put back at the end
        monkeypatch.setattr(parent, "torch", parent.torch)
    for name in [name for name in sys.modules if name.startswith("kontext.runtime.backends.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(KontextError, match=re.escape(f"not installed: {install_command('torch')}")):
        Pipeline.load(tiny_bundle, backend="torch")


def test_a_bundle_at_fault_is_not_tried_in_another_way(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is damaged is so for every backend: the first that reads it says so, and no other is opened."""
    bundle = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    graph = bundle.graphs["transformer"].path
    graph.write_bytes(graph.read_bytes()[::-1])
    opened: list[str] = []

    def read_graph(options: Any, *_: Any, **__: Any) -> None:
        opened.append(options.name)
        bundle.graph_bytes("transformer")

    monkeypatch.setattr("kontext.runtime.backends.select.open_backend", read_graph)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BundleError, match=r"transformer\.onnx is damaged"):
            open_fastest(bundle, low_memory=False)
    assert len(opened) == 1
