"""Plug-in providers: how they are named, found and refused, by the installed ONNX Runtime itself.

tests/install/test_plugin_providers.py meets published ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from kontext.errors import KontextError
from kontext.runtime import OnnxRuntimeOptions, Pipeline
from kontext.runtime.backends import plugins
from kontext.runtime.backends.plugins import WHEELS, Plugin, describe_devices, devices_of, plugin_of

needs_plugins = pytest.mark.skipif(
    not hasattr(onnxruntime, "register_execution_provider_library"),
    reason="ONNX Runtime 1.23 or newer has plug-in providers",
)


@pytest.mark.parametrize(
    ("text", "library", "settings"),
    [
        ("onnxruntime_ep_openvino", "onnxruntime_ep_openvino", {}),
        ("/opt/ep/lib.so", "/opt/ep/lib.so", {}),
        ("lib.so:device_type=GPU", "lib.so", {"device_type": "GPU"}),
        ("C:\\ep\\lib.dll:a=1,b.c=x y,d=", "C:\\ep\\lib.dll", {"a": "1", "b.c": "x y", "d": ""}),
    ],
)
def test_a_provider_and_its_options(text: str, library: str, settings: dict[str, str]) -> None:
    assert Plugin.parse(text) == Plugin(library, settings)


@pytest.mark.parametrize(
    "text", ["", " ", "lib.so:=", "lib.so:a=1,,b=2", "lib.so:a=1,b", "numpy:a", "numpy:", "lib.so:a=1,a=2"]
)
def test_what_is_no_provider(text: str) -> None:
    with pytest.raises(KontextError, match=r"--provider (takes LIBRARY|names an option twice)"):
        Plugin.parse(text)


@pytest.mark.parametrize("device", WHEELS)
def test_a_wheel_that_is_not_installed(
    device: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "is_installed", lambda _: False)
    with pytest.raises(KontextError, match=f"not installed: .*{WHEELS[device].package}"):
        Pipeline.load(tiny_bundle, device=device)


def test_onnx_runtimes_own_devices_are_no_plugins() -> None:
    assert plugin_of("cuda", None) is None
    assert plugin_of("auto", "lib.so") == Plugin("lib.so")


@needs_plugins
@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("/nowhere/lib.so", "there is no such library"),
        ("no_such_module", "neither a library nor a module"),
        ("this", "neither a library nor a module"),  # and its code is not run
        ("onnxruntime-ep-openvino", "the module of its wheel is onnxruntime_ep_openvino"),
        ("/", "it is a folder"),
        (__file__, "cannot load it"),
    ],
)
def test_libraries_that_are_none(tiny_bundle: Path, library: str, message: str) -> None:
    with pytest.raises(KontextError, match=message) as caught:
        Pipeline.load(tiny_bundle, backend=OnnxRuntimeOptions(provider=library))
    assert "\n" not in str(caught.value)


def test_a_device_and_a_provider_exclude_each_other(tiny_bundle: Path) -> None:
    with pytest.raises(KontextError, match="both say what runs the graphs"):
        Pipeline.load(tiny_bundle, device="cpu", backend=OnnxRuntimeOptions(provider="lib.so"))


@needs_plugins
def test_a_provider_without_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.touch()
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None)
    with pytest.raises(KontextError, match="finds no device here"):
        devices_of(Plugin(str(library)))


@needs_plugins
def test_sessions_on_a_device_of_a_provider(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own CPU device stands for a provider's: the same calls, and the same picture as by name. What is
    left to the CPU is warned about."""
    (cpu, *_) = onnxruntime.get_ep_devices()
    monkeypatch.setattr(plugins, "library_path", lambda _: "stand-in")
    monkeypatch.setitem(plugins.REGISTERED, "stand-in", [cpu])
    assert describe_devices([cpu])[0].startswith("CPUExecutionProvider: CPU, ")
    plugged = Pipeline.load(tiny_bundle, backend=OnnxRuntimeOptions(provider="stand-in"))
    with pytest.warns(
        UserWarning, match=r"text_encoder\.onnx: CPUExecutionProvider leaves to the CPU: .*MatMul"
    ):
        ours = plugged.edit(None, "x", steps=1)
    theirs: Any = Pipeline.load(tiny_bundle, device="cpu").edit(None, "x", steps=1)
    assert ours.tobytes() == theirs.tobytes()
