"""The placement of bundles on a provider, as a table. tests/install/test_cuda_placement.py runs it on the real one."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import onnxruntime
import pytest

from kontext.bench import cli, placement
from kontext.runtime.backends.placement import RECORD, heavy_on_cpu, placed_operators


def test_operators_of_a_session_are_counted(tiny_bundle: Path) -> None:
    """Against the nodes of the graph: none is fused yet."""
    onnx = pytest.importorskip("onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*RECORD)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = str(tiny_bundle / "text_encoder.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    placed = placed_operators(session)
    assert list(placed) == ["CPUExecutionProvider"]
    assert placed["CPUExecutionProvider"]["MatMul"] == nodes["MatMul"] > 0


def test_shapes_may_be_computed_on_the_cpu_and_products_may_not() -> None:
    placed = {
        "CPUExecutionProvider": Counter({"Concat": 3, "MatMulInteger": 2}),
        "CUDAExecutionProvider": Counter(),
    }
    assert heavy_on_cpu(placed) == {"MatMulInteger": 2}
    assert heavy_on_cpu({"CUDAExecutionProvider": Counter({"MatMul": 1})}) == {}


def test_stderr_is_caught_below_python() -> None:
    with placement.captured_stderr() as lines:
        os.write(2, b"3 Memcpy nodes are added\n")
    assert lines == ["3 Memcpy nodes are added\n"]


def test_the_table() -> None:
    good = {"on_cpu": {"Concat": 1}, "heavy_on_cpu": {}, "copies": 0}
    result = {
        "what": "placement",
        "onnxruntime": "1.0",
        "bundles": {
            "bf16": {"transformer": good, "vae_decoder": {"error": "no kernel"}},
            "fp16": {"transformer": good | {"heavy_on_cpu": {"MatMul": 1}, "copies": 4}, "vae_decoder": good},
        },
    }
    (table,) = placement.tables(result)
    assert table.rows == [("bf16", "all but vae_decoder", "none", "0"), ("fp16", "all", "transformer", "4")]
    assert "1.0" in placement.footer(result)


def test_it_needs_the_cuda_provider(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    assert cli.main(["placement", str(tiny_bundle)]) == 2
    assert "has no CUDA provider" in capsys.readouterr().err
