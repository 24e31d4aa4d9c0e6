"""The graphs' inputs and outputs, in the bundle's files."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from kontext.export.graph import interface  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402


def test_interface_is_the_contract(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    for name in NETWORKS:
        graph = onnx.load(tiny_bundle / f"{name}.onnx", load_external_data=False).graph
        expected = interface.network_interface(name, config)
        for values, shapes in ((graph.input, expected.inputs), (graph.output, expected.outputs)):
            assert [value.name for value in values] == list(shapes)
            for value, shape in zip(values, shapes.values(), strict=True):
                tensor = value.type.tensor_type
                assert tensor.elem_type == (
                    onnx.TensorProto.INT64 if "ids" in value.name else onnx.TensorProto.FLOAT
                )
                assert tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim) == shape
