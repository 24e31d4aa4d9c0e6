"""The least time of a product, against the same figures by hand."""

from __future__ import annotations

import pytest

from kontext.quant.cards import find_card
from kontext.quant.recipe import Layer
from kontext.quant.speed import ENGINE, TORCH, Product, product_seconds, step_seconds

CARD = find_card("RTX 4090")
ROWS, SIDE = 8192, 3072
OPERATIONS = 2 * ROWS * SIDE**2
WEIGHTS = SIDE**2
BANDWIDTH = 1008e9


def seconds(
    layer: Layer, stored: float, executor: str = ENGINE, rounded: str = "", rows: int = ROWS
) -> float:
    found = product_seconds(Product(rows, SIDE, SIDE, layer, int(stored), rounded), CARD, "bf16", executor)
    assert found is not None
    return found


def test_large_products_take_the_rate_and_small_ones_the_bandwidth() -> None:
    assert seconds(Layer("bf16"), 2 * WEIGHTS) == pytest.approx(OPERATIONS / 165.15e12, rel=1e-3)
    assert seconds(Layer("bf16"), 2 * WEIGHTS, rows=1) == pytest.approx((2 * WEIGHTS + 4 * SIDE) / BANDWIDTH)


def test_engines_scale_products_of_8_bits_afterwards() -> None:
    plain = OPERATIONS / 660.6e12 + 4 * ROWS * SIDE / BANDWIDTH
    static = Layer("int8", 0, "int8", True, "static", True)
    assert seconds(static, WEIGHTS, rounded="int8") == pytest.approx(plain, rel=1e-3)
    # INT4 weights: read, written in 8 bits, read again.
    four = seconds(Layer("int4", 0, "int8", True, "static", True), WEIGHTS / 2, rounded="int8")
    assert four - plain == pytest.approx(2.5 * WEIGHTS / BANDWIDTH, rel=1e-2)


def test_what_is_unpacked_first_costs_its_bytes() -> None:
    fused, unpacked = seconds(Layer("int4"), WEIGHTS / 2), seconds(Layer("nf4"), WEIGHTS / 2)
    assert unpacked - fused == pytest.approx(4.5 * WEIGHTS / BANDWIDTH)
    # The torch backend multiplies INT4 as it is, and unpacks FP8 whose inputs are left alone.
    assert seconds(Layer("int4"), WEIGHTS / 2, TORCH) == fused
    assert seconds(Layer("fp8"), WEIGHTS, TORCH) - fused == pytest.approx(5 * WEIGHTS / BANDWIDTH)
    assert seconds(Layer("fp8"), WEIGHTS, TORCH, "fp8") == pytest.approx(OPERATIONS / 330.3e12, rel=1e-3)


def test_branches_are_products_in_16_bits() -> None:
    more = seconds(Layer("int4", 32), WEIGHTS / 2) - seconds(Layer("int4"), WEIGHTS / 2)
    assert more == pytest.approx(2 * ROWS * 32 * 2 * SIDE / 165.15e12, rel=1e-3)


def test_a_step_is_its_products_and_attention() -> None:
    product = Product(ROWS, SIDE, SIDE, Layer("bf16"), 2 * WEIGHTS)
    found = step_seconds([product] * 3, 1e12, CARD, "bf16", ENGINE)
    assert found == pytest.approx(3 * seconds(Layer("bf16"), 2 * WEIGHTS) + 1e12 / 165.15e12, rel=1e-3)


def test_formats_that_the_card_lacks() -> None:
    product = Product(ROWS, SIDE, SIDE, Layer("nvfp4", 0, "nvfp4"), WEIGHTS // 2, "nvfp4")
    assert step_seconds([product], 0.0, CARD, "bf16", ENGINE) is None
    assert step_seconds([], 0.0, find_card("T4"), "bf16", ENGINE) is None
