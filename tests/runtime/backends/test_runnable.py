"""What is refused before loading. Oracle: ONNX Runtime itself, which loads exactly the bundles that are not refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from kontext.errors import KontextError
from kontext.runtime import OnnxRuntimeOptions, OpenVINOOptions, Pipeline, TorchOptions, cli
from kontext.runtime.backends.runnable import Formats
from kontext.runtime.bundle import Bundle

PLAIN = dict.fromkeys(("text_encoder", "text_encoder_2", "transformer"), "fp32")


def formats(compute: str = "fp32", weights: tuple[str, ...] = (), linked: bool = False) -> Formats:
    layers = {"transformer": {str(i): each for i, each in enumerate(weights)}}
    return Formats.of_precision({"networks": {**PLAIN, "transformer": compute}, "layers": layers}, linked)


@pytest.mark.parametrize("compute", ["fp32", "fp16", "bf16"])
def test_what_the_cpu_adds_and_multiplies(compute: str) -> None:
    """Oracle: ONNX Runtime, which does or does not create a session for x + x @ x."""
    dtype = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[compute]
    value = helper.make_tensor_value_info("x", dtype, [4, 4])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["p"]), helper.make_node("Add", ["x", "p"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", dtype, [4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    refused: Any = contextlib.nullcontext()
    if formats(compute).missing("cpu"):
        refused = pytest.raises(Exception, match="NOT_IMPLEMENTED")
    with refused:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_what_no_device_of_onnx_runtime_unpacks() -> None:
    """Oracle: ONNX Runtime, asked for DequantizeLinear of E2M1."""
    table = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT4E2M1, dims=[16], raw_data=bytes(8))
    scale = onnx.numpy_helper.from_array(np.ones(1, np.float32), "s")
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0, block_size=16)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16])],
        [table, scale],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(
        Exception, match="NOT_IMPLEMENTED : Could not find an implementation for DequantizeLinear"
    ):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for device in ("cpu", "cuda"):
        assert "no kernels for NVFP4: use --device openvino or --backend torch" in formats(
            weights=("nvfp4",)
        ).refusal(device)


def test_openvino_reads_no_codes_of_computed_values(tiny_bundle: Path, tmp_path: Path) -> None:
    """Oracle: OpenVINO, asked for QuantizeLinear to E2M1 of tokens."""
    openvino = pytest.importorskip("openvino")
    tokens = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", 16])
    steps = helper.make_tensor_value_info("s", TensorProto.FLOAT, ["tokens", 1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", 16])
    blocks: dict[str, Any] = {"axis": -1, "block_size": 16}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["c"], output_dtype=TensorProto.FLOAT4E2M1, **blocks),
        helper.make_node("DequantizeLinear", ["c", "s"], ["y"], **blocks),
    ]
    graph = helper.make_graph(nodes, "g", [tokens, steps], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    with pytest.raises(RuntimeError, match="QuantizeLinear"):
        openvino.Core().read_model(model.SerializeToString())
    folder = noted(tiny_bundle, tmp_path, "fp32", "nvfp4")
    OpenVINOOptions().check("openvino", Bundle.open(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["precision"]["layers"]["transformer"]["x.weight"]["activations"] = "nvfp4"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bundle = Bundle.open(folder)
    with pytest.raises(
        KontextError, match="inputs rounded to NVFP4: use --backend torch, or export it again"
    ):
        OpenVINOOptions().check("openvino", bundle)
    assert "NVFP4: use --backend torch, or" in Formats.of(bundle).refusal("cpu")


def test_what_would_work_instead() -> None:
    assert formats().instead() == "use --device cpu"
    assert formats("fp16", ("int4", "fp8")).refusal("cpu") == ""
    assert formats("bf16").refusal("cuda") == ""
    assert "use --device openvino or --backend torch" in formats("bf16").refusal("cpu")
    assert formats("bf16").refusal("cpu").endswith("or export it again with --fp32")
    both = formats("bf16", ("nvfp4",)).refusal("cpu")
    assert both.endswith("or export it again with --fp32 and another format, such as --int4")
    linked = formats("bf16", linked=True).refusal("cpu")
    assert linked.endswith("export it again with --fp32, or without --link-weights to use --backend torch")


@pytest.mark.parametrize("precision", [None, [], {}, {"networks": 3, "layers": "x"}, {"layers": {"a": 1}}])
def test_manifests_that_say_nothing_are_not_refused(precision: object) -> None:
    data = precision if isinstance(precision, dict) else {}
    assert Formats.of_precision(data, False).refusal("cpu") == ""


def noted(bundle: Path, folder: Path, compute: str, layer: str | None = None) -> Path:
    """A copy whose manifest says that the transformer computes in `compute` and has a weight stored as `layer`."""
    copy = shutil.copytree(bundle, folder / "noted")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["precision"]["networks"]["transformer"] = compute
    if layer is not None:
        manifest["precision"]["layers"] = {"transformer": {"x.weight": {"format": layer, "rank": 16}}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    ("compute", "layer", "message"),
    [
        ("bf16", None, "no kernels for bf16 on a CPU: use --device openvino or --backend torch"),
        ("fp32", "nvfp4", "no kernels for NVFP4: use --device openvino or --backend torch"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_it_is_refused_before_anything_is_loaded(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    compute: str,
    layer: str | None,
    message: str,
    device: str,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("loaded a graph"))
    folder = noted(tiny_bundle, tmp_path, compute, layer)
    more = ["--prompt", "x", "-o", str(tmp_path / "out.png"), "--device", device, "--backend", "onnxruntime"]
    assert cli.main([str(folder), *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_gpu_that_does_not_start_leaves_nothing_for_bf16(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto falls back to the CPU only where that can run the bundle."""
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    if cuda in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, cpu])
    monkeypatch.setattr(
        "kontext.runtime.backends.onnxruntime.OnnxRuntimeBackend.providers", lambda _self: [(cpu, {})]
    )
    pipe = Pipeline.load(noted(tiny_bundle, tmp_path, "bf16"), backend="onnxruntime")
    with pytest.raises(
        KontextError, match="no kernels for bf16 on a CPU: use --device openvino or --backend torch"
    ):
        pipe.edit(None, "x", steps=1)


def test_linked_weights_in_bf16_are_one_true_line(tiny_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's CPU cannot compute in bf16 and the torch backend cannot read links: neither names the other."""
    import dataclasses

    bundle = Bundle.open(noted(tiny_bundle, tmp_path, "bf16"))
    linked = dataclasses.replace(bundle, links={"links/x": None})  # type: ignore[dict-item]
    with pytest.raises(KontextError, match="export it again with --fp32, or without --link-weights"):
        OnnxRuntimeOptions().check("cpu", linked)
    with pytest.raises(
        KontextError, match=r"--link-weights, .* export it .* without --link-weights$"
    ) as caught:
        TorchOptions().check("cpu", linked)
    assert "--backend onnxruntime" not in str(caught.value)
