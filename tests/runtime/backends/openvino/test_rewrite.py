"""Graphs rewritten for OpenVINO: no 16-bit arithmetic, weights as they are stored, results that of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kontext.errors import KontextError

ov = pytest.importorskip("openvino", reason="OpenVINO is not installed")

from openvino import opset13 as operators  # noqa: E402

from kontext.runtime.backends.openvino.rewrite import NF4, rewrite  # noqa: E402

RNG = np.random.default_rng(7)


def bf16(array: np.ndarray) -> Any:
    """A bf16 constant of numbers that bf16 has exactly."""
    tensor = ov.Tensor(ov.Type.bf16, ov.Shape(array.shape))
    bits = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensor.data.view(np.uint16)[:] = bits
    return operators.constant(tensor)


def kinds(model: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in model.get_ordered_ops():
        found.setdefault(node.get_type_name(), []).append(node)
    return found


def computed(model: Any, *inputs: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(list(inputs))[0])


def small_integers(*shape: int) -> np.ndarray:
    return RNG.integers(-8, 8, shape).astype(np.float32)


@pytest.mark.parametrize("size", [8, 256])
def test_16_bit_floats_become_fp32(size: int) -> None:
    """Large weights stay behind a Convert, whatever else is small is copied."""
    weight, bias, x = small_integers(size, size), small_integers(size), small_integers(3, size)
    given = operators.parameter([-1, size], np.float32)
    half = operators.convert(given, "bf16")
    product = operators.add(operators.matmul(half, bf16(weight), False, False), bf16(bias))
    model = ov.Model([operators.convert(product, "f32")], [given], "test")
    rewrite(model)
    found = kinds(model)
    for node in found["MatMul"] + found["Add"]:
        assert node.get_output_element_type(0) == ov.Type.f32
    stored = [node.get_output_element_type(0) for node in found["Constant"]]
    assert (ov.Type.bf16 in stored) == (size == 256)
    assert np.array_equal(computed(model, x), x @ weight + bias)


def test_tables_are_not_unpacked() -> None:
    table, rows = small_integers(4096, 16), np.array([5, 4095, 0])
    given = operators.parameter([-1], np.int64)
    gathered = operators.gather(bf16(table), given, operators.constant(np.int64(0)))
    model = ov.Model([operators.convert(operators.add(gathered, gathered), "f32")], [given], "test")
    rewrite(model)
    assert kinds(model)["Gather"][0].get_output_element_type(0) == ov.Type.bf16
    assert kinds(model)["Add"][0].get_output_element_type(0) == ov.Type.f32
    assert np.array_equal(computed(model, rows), 2 * table[rows])


def nf4_product(codes: np.ndarray, table: np.ndarray) -> Any:
    """x @ W as the exporter writes it for NF4, W [out, in] from codes [out, in]."""
    out, wide = codes.shape
    packed = operators.constant((codes[:, 0::2] << 4 | codes[:, 1::2]).astype(np.uint8))
    pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1)
    axis = operators.constant(np.int64(0))
    looked_up = operators.gather(operators.constant(pairs), operators.convert(packed, "i32"), axis)
    blocks = operators.reshape(looked_up, operators.constant(np.array([out, -1, 64])), False)
    weight = operators.reshape(blocks, operators.constant(np.array([out, wide])), False)
    given = operators.parameter([-1, wide], np.float32)
    turned = operators.transpose(weight, operators.constant(np.array([1, 0])))
    return ov.Model([operators.matmul(given, turned, False, False)], [given], "test")


def test_nf4_codes_stay_packed() -> None:
    codes, x = RNG.integers(0, 16, (32, 128)).astype(np.uint8), small_integers(5, 128)
    model = nf4_product(codes, NF4)
    rewrite(model)
    assert ov.Type.nf4 in [node.get_output_element_type(0) for node in kinds(model)["Constant"]]
    assert "Gather" not in kinds(model)
    assert np.allclose(computed(model, x), x @ NF4[codes].T, atol=1e-4)


def test_other_codes_are_left_alone() -> None:
    table = np.linspace(-1, 1, 16, dtype=np.float32)
    codes, x = RNG.integers(0, 16, (32, 128)).astype(np.uint8), small_integers(5, 128)
    model = nf4_product(codes, table)
    rewrite(model)
    assert "Gather" in kinds(model)
    assert np.allclose(computed(model, x), x @ table[codes].T, atol=1e-4)


def test_shifts_of_bytes_are_refused() -> None:
    """OpenVINO makes BitShift a division that rounds to the nearest."""
    given = operators.parameter([-1], np.uint8)
    model = ov.Model([operators.divide(given, operators.constant(np.uint8(16)))], [given], "test")
    with pytest.raises(
        KontextError, match="shifts bytes, which OpenVINO computes wrongly: export the bundle again"
    ):
        rewrite(model)


def test_openvino_has_the_same_nf4() -> None:
    tensor = ov.Tensor(ov.Type.nf4, ov.Shape([16]))
    tensor.data[:] = np.arange(0, 16, 2) | np.arange(1, 16, 2) << 4
    given = operators.parameter([16], np.float32)
    model = ov.Model(
        [operators.add(given, operators.convert(operators.constant(tensor), "f32"))], [given], "test"
    )
    assert np.allclose(computed(model, np.zeros(16, np.float32)), NF4, atol=1e-6)
