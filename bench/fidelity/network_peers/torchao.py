"""torchao with rounded inputs: scales for each token that are found at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..peer_quantizers import GROUP, bits_of
from .torch_networks import Calibrate, TorchMethod

Config = Any
"""A configuration of `torchao.quantization`."""


def int8_config() -> Config:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


def int4_config() -> Config:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup

    four_bits: torch.dtype = torch.int4  # type: ignore[attr-defined]
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=four_bits, weight_granularity=PerGroup(GROUP))


def quantize_int8(network: nn.Module, paths: Sequence[str], _: Calibrate) -> None:
    apply(network, paths, int8_config())


def quantize_int4(network: nn.Module, paths: Sequence[str], _: Calibrate) -> None:
    apply(network, paths, int4_config())


def apply(network: nn.Module, paths: Sequence[str], config: Config) -> None:
    from torchao.quantization import quantize_

    chosen = set(paths)
    quantize_(network, config, filter_fn=lambda _module, path: path in chosen)


def quantize_fp8(network: nn.Module, paths: Sequence[str], _: Calibrate) -> None:
    """What `Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())` makes of each weight, made directly.

    The configuration itself asks for a GPU of capability 8.9, while its tensors and PyTorch's product of them run on a
    CPU too.
    """
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.common import KernelPreference
    from torchao.quantization.quantize_.workflows import Float8Tensor, QuantizeTensorToFloat8Kwargs

    rows, torch_kernels = PerRow(), KernelPreference.TORCH
    for path in paths:
        linear = network.get_submodule(path)
        tensor = Float8Tensor.from_hp(
            linear.weight,
            granularity=rows,
            mm_config=Float8MMConfig(use_fast_accum=True),
            kernel_preference=torch_kernels,
            act_quant_kwargs=QuantizeTensorToFloat8Kwargs(granularity=rows, kernel_preference=torch_kernels),
        )
        linear.weight = nn.Parameter(tensor, requires_grad=False)


def stored_bits(width: int, module: nn.Module) -> int | None:
    """Values of `width` bits, and scales. Weights are symmetric: their stored zero points are all zero, not counted."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or not hasattr(weight, "qdata"):
        return None
    return width * weight.numel() + bits_of(weight.scale)


def eight_bits(module: nn.Module) -> int | None:
    return stored_bits(8, module)


def four_bits(module: nn.Module) -> int | None:
    return stored_bits(4, module)


FP8 = TorchMethod(quantize_fp8, eight_bits)
INT8 = TorchMethod(quantize_int8, eight_bits)
INT4_INT8 = TorchMethod(quantize_int4, four_bits)
