"""optimum-quanto with rounded inputs: static scales from its own `Calibration`, which averages the largest values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from ..peer_quantizers import bits_of, load_quanto
from .torch_networks import Calibrate, TorchMethod


def quantize(
    weights: str, activations: str, network: nn.Module, paths: Sequence[str], calibrate: Calibrate
) -> None:
    """`weights` and `activations` name types of quanto. Weights are frozen before the calibration and not after it:
    the same values, which it would else compute again at every step."""
    quanto = load_quanto()
    quanto.quantize(
        network,
        weights=getattr(quanto, weights),
        activations=getattr(quanto, activations),
        include=list(paths),
    )
    quanto.freeze(network)
    with quanto.Calibration():
        calibrate()


def stored_bits(width: int, module: nn.Module) -> int | None:
    """Values of `width` bits, scales and shifts of the weights, the scales of inputs and outputs."""
    if not hasattr(module, "weight_qtype"):
        return None
    weight: Any = module.weight
    scales = [getattr(weight, name, None) for name in ("_scale", "_shift")]
    around: Any = (module.input_scale, module.output_scale)
    return width * weight.numel() + bits_of(*scales, *around)


FP8 = TorchMethod(
    partial(quantize, "qfloat8_e4m3fn", "qfloat8_e4m3fn"), partial(stored_bits, 8), calibrated=True
)
INT8 = TorchMethod(partial(quantize, "qint8", "qint8"), partial(stored_bits, 8), calibrated=True)
INT4_INT8 = TorchMethod(partial(quantize, "qint4", "qint8"), partial(stored_bits, 4), calibrated=True)
