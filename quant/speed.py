"""The least time of a sampler's step on a card, from the network's shapes and what an executor makes of each format.

A product takes as long as its operations at the card's published rate, or as long as its weight, inputs and outputs
through the card's memory, whichever is longer (the roofline: Williams et al. 2009); passes before and after it move
bytes only. Real kernels reach a part of this, so times are for comparing formats, not forecasts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .cards import Card
from .formats import FORMATS
from .formats.base import INT4_GEMM, InputRounding, TensorRT
from .recipe import Layer

ENGINE, TORCH = "rtx", "torch"
"""What runs a bundle: compiled engines with their weights inside, or the torch backend."""


@dataclass(frozen=True)
class Product:
    """x [rows, in] @ a weight [in, out] that is stored as `layer` in `stored` bytes; `rounded` is the format that x is
    rounded to for it, "" for none."""

    rows: int
    inputs: int
    outputs: int
    layer: Layer
    stored: int
    rounded: str = ""

    @property
    def operations(self) -> float:
        return 2.0 * self.rows * self.inputs * self.outputs


def product_seconds(product: Product, card: Card, compute: str, executor: str) -> float | None:
    """Seconds of a product; None if the card's tensor cores lack its format."""
    rate, plain = card.rate(product.rounded or compute), card.rate(compute)
    if rate is None or plain is None:
        return None
    rows, widths = product.rows, product.inputs + product.outputs
    moved = product.stored + 2 * rows * widths
    seconds = max(product.operations / rate, moved / card.bandwidth)
    if product.layer.rank:
        seconds += 2.0 * rows * product.layer.rank * widths / plain
    return seconds + pass_bytes(product, executor) / card.bandwidth


def pass_bytes(product: Product, executor: str) -> float:
    """Bytes that passes before and after a product move: of weights that are unpacked, and of products that are scaled
    after they were written."""
    layer, weights = product.layer, product.inputs * product.outputs
    if layer.format not in FORMATS:
        return 0.0
    format = FORMATS[layer.format]
    in_8_bits, in_16_bits = (
        product.stored + 2.0 * weights,
        product.stored + 4.0 * weights,
    )  # written, and read again
    if executor == TORCH:
        if format.kernel == INT4_GEMM:
            return in_8_bits if product.rounded else 0.0
        return 0.0 if product.rounded else in_16_bits
    if not product.rounded:
        return in_16_bits if format.tensorrt is TensorRT.UNPACKED else 0.0
    unpacked = in_8_bits if layer.is_unpacked_to_inputs else 0.0
    by_column = 0.0 if layer.input_rounding is InputRounding.BLOCKS else 4.0 * product.rows * product.outputs
    return unpacked + by_column


def step_seconds(
    products: Iterable[Product], attention: float, card: Card, compute: str, executor: str
) -> float | None:
    """Seconds of a step: its products, and attention's `attention` operations, in what the network computes in; None
    if the card lacks a format."""
    plain = card.rate(compute)
    seconds = [product_seconds(product, card, compute, executor) for product in products]
    if plain is None or None in seconds:
        return None
    return attention / plain + sum(filter(None, seconds))
