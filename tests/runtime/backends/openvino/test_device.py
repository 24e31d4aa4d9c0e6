"""The choice of OpenVINO's device and of what networks compute in; needs no OpenVINO."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.runtime import Pipeline
from kontext.runtime.backends.openvino.device import (
    choose_compute,
    choose_device,
    has_bf16_units,
)
from kontext.runtime.backends.options import OpenVINOOptions

AMX = ("BF16", "FP16", "FP32", "INT8")
PLAIN = ("FP32", "INT8")


@pytest.mark.parametrize(
    ("device", "available", "chosen"),
    [
        ("auto", ["CPU"], "CPU"),
        ("cpu", ["CPU", "GPU"], "CPU"),
        ("openvino", ["CPU", "GPU"], "CPU"),
        ("openvino:cpu", ["CPU"], "CPU"),
        ("openvino:gpu", ["CPU", "GPU"], "GPU"),
        ("openvino:gpu", ["CPU", "GPU.0", "GPU.1"], "GPU"),
        ("openvino:npu", ["CPU", "NPU"], "NPU"),
    ],
)
def test_devices(device: str, available: list[str], chosen: str) -> None:
    assert device in OpenVINOOptions.devices
    assert choose_device(device, available) == chosen


@pytest.mark.parametrize("name", ["gpu", "npu"])
def test_a_device_that_is_not_there(name: str) -> None:
    plugin = name.upper()
    message = f"device 'openvino:{name}': OpenVINO finds no {plugin} here .it has CPU.: install the {plugin}'s driver"
    with pytest.raises(KontextError, match=message):
        choose_device(f"openvino:{name}", ["CPU"])


@pytest.mark.parametrize(
    ("graph", "asked", "exported", "device", "capabilities", "chosen"),
    [
        ("transformer", None, "fp32", "CPU", AMX, "fp32"),
        ("transformer", None, "bf16", "CPU", AMX, "bf16"),
        ("transformer", None, "bf16", "CPU", PLAIN, "fp32"),
        ("transformer", None, "fp16", "CPU", AMX, "fp32"),
        ("transformer", None, "fp16", "GPU", ("FP32", "FP16"), "fp16"),
        ("transformer", None, "bf16", "GPU", ("FP32", "FP16"), "fp32"),
        ("transformer", "bf16", "fp32", "CPU", AMX, "bf16"),
        ("transformer", "fp16", "fp32", "CPU", AMX, "fp16"),
        ("transformer", "fp32", "bf16", "CPU", AMX, "fp32"),
        ("modulation", None, "bf16", "CPU", AMX, "fp32"),
        ("modulation", "fp16", "bf16", "CPU", AMX, "fp32"),
        ("text_encoder_2", "bf16", "fp32", "CPU", AMX, "bf16"),
        ("text_encoder_2", "fp16", "fp32", "CPU", AMX, "fp32"),
    ],
)
def test_what_a_graph_computes_in(
    graph: str, asked: str | None, exported: str, device: str, capabilities: tuple[str, ...], chosen: str
) -> None:
    assert choose_compute(graph, asked, exported, device, capabilities) == chosen


def test_what_a_device_does_not_compute_in() -> None:
    with pytest.raises(
        KontextError, match=r"this CPU does not compute in bf16 in OpenVINO: choose from fp32$"
    ):
        choose_compute("modulation", "bf16", "fp32", "CPU", PLAIN)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512f amx_bf16", True), ("avx512_bf16", True), ("avx2", False), (None, False)],
)
def test_processors_with_bf16_units(tmp_path: Path, flags: str | None, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert has_bf16_units(path) is expected


def test_without_openvino(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(KontextError, match="OpenVINO is not installed: pip install"):
        Pipeline.load(tiny_bundle, device="openvino")
