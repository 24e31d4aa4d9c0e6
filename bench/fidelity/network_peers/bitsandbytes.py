"""bitsandbytes' linears: LLM.int8, whose inputs have a scale for each token, and 4-bit FP4 and NF4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..peer_quantizers import GROUP, bits_of
from .torch_networks import Calibrate, TorchMethod, parent_of

OUTLIER = 6.0
"""Input channels with larger values stay in 16 bits (LLM.int8, Dettmers et al. 2022); the library's and transformers'
default."""


def replace_linears(
    make: Callable[[nn.Linear], nn.Module], network: nn.Module, paths: Sequence[str], _: Calibrate
) -> None:
    """As transformers does it: each linear is replaced, and `to` quantizes it. `eval`, because in training the library
    does not round inputs."""
    for path in paths:
        parent, name = parent_of(network, path)
        linear: Any = getattr(parent, name)
        setattr(parent, name, make(linear).to("cpu").eval())


def int8_linear(linear: nn.Linear) -> nn.Module:
    import bitsandbytes

    made: Any = bitsandbytes.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=OUTLIER,
    )
    made.weight = bitsandbytes.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = linear.bias
    return made


def four_bit_linear(kind: str, linear: nn.Linear) -> nn.Module:
    """`kind` is fp4 or nf4. transformers' T5 converts inputs to the type of its last weight: so codes are kept in a
    tensor of type float32, and not packed again, as bytes, for kernels that compute in bf16."""
    import bitsandbytes

    made: Any = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.float32,
        compress_statistics=False,
        quant_type=kind,
        quant_storage=torch.float32,
    )
    made.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data,
        requires_grad=False,
        blocksize=GROUP,
        compress_statistics=False,
        quant_type=kind,
        quant_storage=torch.float32,
    )
    made.bias = linear.bias
    made.support_avx512bf16_for_cpu = False
    return made


def int8_bits(module: nn.Module) -> int | None:
    """Values, and a scale for each output channel; they move from the weight to the module's state at the first run."""
    state: Any = getattr(module, "state", None)
    if state is None or not hasattr(state, "SCB"):
        return None
    weight: Any = module.weight
    scales = state.SCB if state.SCB is not None else weight.SCB
    return 8 * int(weight.numel()) + bits_of(scales)


def four_bits(module: nn.Module) -> int | None:
    """Codes, and an fp32 scale for each block."""
    state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None:
        return None
    return 4 * int(state.shape.numel()) + bits_of(state.absmax)


INT8 = TorchMethod(partial(replace_linears, int8_linear), int8_bits)
FP4 = TorchMethod(partial(replace_linears, partial(four_bit_linear, "fp4")), four_bits)
