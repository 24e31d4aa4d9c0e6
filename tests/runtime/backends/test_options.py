"""The backends' options: what each checks, and that importing them imports no backend."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kontext.command import Parser
from kontext.errors import KontextError
from kontext.runtime import OnnxRuntimeOptions, OpenVINOOptions, Pipeline, TensorRTOptions, TorchOptions
from kontext.runtime.backend_flags import OPTION_FLAGS, add_backend_flags, backend_options
from kontext.runtime.backends.onnxruntime import PROVIDERS
from kontext.runtime.backends.plugins import WHEELS
from kontext.runtime.bundle import Bundle
from kontext.runtime.engines import LIBRARIES


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        (OnnxRuntimeOptions, {"threads": 0}, "threads must be from 1 to 1024, not 0"),
        (OnnxRuntimeOptions, {"threads": 10**9}, "threads must be from 1 to 1024, not 1000000000"),
        (OpenVINOOptions, {"cache": "no"}, "cache must be True or False, not 'no'"),
        (OpenVINOOptions, {"cache": None}, "cache must be True or False, not None"),
        (TorchOptions, {"offload": "no"}, "offload must be True or False, not 'no'"),
        (TorchOptions, {"tiled": 1}, "tiled must be True or False, not 1"),
        (TorchOptions, {"cache": 0.0}, "cache must be a relative change above 0, such as 0.1, not 0"),
        (TorchOptions, {"cache": float("nan")}, "cache must be a relative change above 0"),
        (TorchOptions, {"cache": float("inf")}, "cache must be a relative change above 0"),
        (TorchOptions, {"reuse_reference": 1}, "reuse_reference must be 2 steps or more, not 1"),
        (
            TorchOptions,
            {"attention": "fp4"},
            "attention 'fp4' is not known: choose from auto, 16-bit, fp8, int8",
        ),
        (TorchOptions, {"activations": "fp4"}, "activations 'fp4' is not known"),
        (
            OnnxRuntimeOptions,
            {"activations": "int8"},
            "activations 'int8' is not known: choose from auto, 16-bit",
        ),
        (OnnxRuntimeOptions, {"threads": "2"}, "threads must be a whole number, not '2'"),
        (TorchOptions, {"cache": "0.1"}, "cache must be a number, not '0.1'"),
        (TorchOptions, {"reuse_reference": 2.5}, "reuse_reference must be a whole number, not 2.5"),
        (TensorRTOptions, {"weight_budget": "8GB"}, "weight_budget must be a whole number, not '8GB'"),
        (TorchOptions, {"compute": "fp8"}, "compute 'fp8' is not known: choose from fp32, fp16, bf16"),
        (OpenVINOOptions, {"threads": 0}, "threads must be from 1 to 1024, not 0"),
        (OpenVINOOptions, {"compute": "int8"}, "compute 'int8' is not known: choose from fp32, fp16, bf16"),
        (TensorRTOptions, {"weight_budget": -1}, "a weight budget is 0 bytes or more, not -1"),
    ],
)
def test_values_that_make_no_sense(record: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match=message):
        record(**fields)


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        (TorchOptions, "cpu", "or pass options such as TorchOptions\\(\\)"),
        (3, "cpu", "backend 3 is not known"),
        ("jax", "cpu", "backend 'jax' is not known: choose from auto, onnxruntime, torch, openvino"),
        (
            "onnxruntime",
            "abacus",
            "device 'abacus' is not known: choose from auto, cpu, cuda, ",
        ),
        ("torch", "tensorrt", "the torch backend runs on cpu or cuda, not on 'tensorrt'"),
        (OnnxRuntimeOptions(), "rtx", "the onnxruntime backend runs on cpu or cuda or nv-rtx or "),
        ("openvino", "cuda", "the openvino backend runs on cpu or openvino or openvino:cpu or "),
        ("torch", "openvino:gpu", "the torch backend runs on cpu or cuda, not on 'openvino:gpu'"),
        (TensorRTOptions(), "auto", "the tensorrt backend runs on rtx or tensorrt, not on 'auto'"),
        (TensorRTOptions(weight_budget=1 << 30), "cuda", "runs on rtx or tensorrt, not on 'cuda'"),
    ],
)
def test_backends_and_devices_that_do_not_go_together(
    tiny_bundle: Path, backend: Any, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before digests are compared, which takes minutes for a large bundle."""
    monkeypatch.setattr(Bundle, "verify", lambda _: pytest.fail("compared digests first"))
    with pytest.raises(KontextError, match=message):
        Pipeline.load(tiny_bundle, device=device, backend=backend, verify=True)


def test_each_backend_knows_its_devices() -> None:
    assert OnnxRuntimeOptions.devices == ("auto", *PROVIDERS, *WHEELS)
    assert TensorRTOptions.devices == tuple(LIBRARIES)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_links_are_for_onnx_runtime(tiny_bundle: Path, backend: str) -> None:
    linked = dataclasses.replace(Bundle.open(tiny_bundle), links={"weights/x": None})  # type: ignore[dict-item]
    message = (
        f"exported with --link-weights, which the {backend} backend does not read: use --backend onnxruntime"
    )
    with pytest.raises(KontextError, match=message):
        Pipeline.load(linked, backend=backend)


def test_every_flag_is_a_field() -> None:
    for option in OPTION_FLAGS:
        for record in option.records:
            assert option.field in {field.name for field in dataclasses.fields(record)}


def test_activations_are_an_option_of_the_command_line() -> None:
    options = Parser()
    add_backend_flags(options)
    words = ["--backend", "torch", "--activations"]
    assert backend_options(options.parse_args([*words, "fp8"])) == TorchOptions(activations="fp8")
    with pytest.raises(KontextError, match="activations"):
        backend_options(options.parse_args([*words, "int3"]))


def test_the_records_load_no_backend() -> None:
    script = (
        "import sys; from kontext.runtime import OnnxRuntimeOptions, OpenVINOOptions, TensorRTOptions, TorchOptions\n"
        "TorchOptions(offload=True); OnnxRuntimeOptions(threads=1); TensorRTOptions(); OpenVINOOptions()\n"
        "print({'numpy', 'onnxruntime', 'openvino', 'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
