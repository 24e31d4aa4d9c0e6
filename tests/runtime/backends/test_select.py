"""Which backend a string, a device and a record select, and what is said where its library is missing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.installation import install_command
from kontext.runtime import OnnxRuntimeOptions, OpenVINOOptions, Pipeline, TensorRTOptions, TorchOptions
from kontext.runtime.backends.onnxruntime import OnnxRuntimeBackend
from kontext.runtime.backends.select import find_options


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
