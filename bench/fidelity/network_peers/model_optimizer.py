"""NVIDIA Model Optimizer with rounded inputs, and its methods that choose scales by the inputs (fake quantization).

Its named configurations spare layers of language models by name. Here exactly the given linears are quantized, with
groups of 64 where a configuration has groups of 128, which do not fit a width of 192.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from ..peer_quantizers import GROUP, bits_of
from .torch_networks import Calibrate, TorchMethod

RANK = 32
"""Of SVDQuant's branch: the library's default."""


def quantize(
    config: str,
    algorithm: dict[str, Any] | None,
    calibrated: bool,
    network: nn.Module,
    paths: Sequence[str],
    calibrate: Calibrate,
) -> None:
    """`config` names one of the library's configurations; `algorithm` replaces its calibration, unless None."""
    import modelopt.torch.quantization as own

    chosen = copy.deepcopy(getattr(own, config))
    chosen["quant_cfg"] = layer_rules(chosen["quant_cfg"], network, paths)
    if algorithm is not None:
        chosen["algorithm"] = algorithm
    own.quantize(network, chosen, forward_loop=(lambda _network: calibrate()) if calibrated else None)


def layer_rules(
    rules: Sequence[dict[str, Any]], network: nn.Module, paths: Sequence[str]
) -> list[dict[str, Any]]:
    """A configuration's rules for weights and inputs, for linears only, and a rule that spares each other linear."""
    wanted = set(paths)
    kept = [rule for rule in rules if rule["quantizer_name"] in ("*weight_quantizer", "*input_quantizer")]
    for rule in kept:
        rule["parent_class"] = "nn.Linear"
        settings = rule.get("cfg") or []
        for each in settings if isinstance(settings, list) else [settings]:
            blocks = each.get("block_sizes")
            if blocks and blocks.get(-1) == 2 * GROUP:
                blocks[-1] = GROUP
    others = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and path not in wanted
    ]
    spared = [{"quantizer_name": f"{path}.*_quantizer", "enable": False} for path in others]
    return [{"quantizer_name": "*", "enable": False}, *kept, *spared]


def stored_bits(module: nn.Module) -> int | None:
    """Values, and scales in 32 bits; factors of the input's channels, its static scale and the low-rank branch are
    stored too."""
    weights, inputs = (getattr(module, f"{name}_quantizer", None) for name in ("weight", "input"))
    if not isinstance(module, nn.Linear) or weights is None or not weights.is_enabled:
        return None
    first, *more = list(weights) if isinstance(weights, nn.Sequential) else [weights]
    count = module.weight.numel()
    branch = [getattr(first, f"svdquant_lora_{name}", None) for name in "ab"]
    of_inputs = [getattr(inputs, name, None) for name in ("amax", "pre_quant_scale")]
    return (
        width(first) * count
        + scale_bits(first, count)
        + 32 * len(more)  # a second quantizer rounds what the first leaves, with one scale
        + bits_of(*branch, *of_inputs)
    )


def width(quantizer: Any) -> int:
    """Bits of a value: of an integer, or sign, exponent and mantissa."""
    bits = quantizer.num_bits
    return bits if isinstance(bits, int) else 1 + sum(bits)


def scale_bits(quantizer: Any, count: int) -> int:
    """Bits of the scales of `count` weights: by blocks, by channels, or one."""
    blocks = quantizer.block_sizes
    return 32 * (math.ceil(count / blocks[-1]) if blocks else int(quantizer.amax.numel()))


def method(config: str, algorithm: dict[str, Any] | None = None, calibrated: bool = True) -> TorchMethod:
    return TorchMethod(partial(quantize, config, algorithm, calibrated), stored_bits, calibrated)


FP8 = method("FP8_DEFAULT_CFG")
FP8_TOKEN = method("FP8_PER_CHANNEL_PER_TOKEN_CFG", calibrated=False)
INT8 = method("INT8_DEFAULT_CFG")
SMOOTHQUANT = method("INT8_SMOOTHQUANT_CFG")
AWQ = method("INT4_AWQ_CFG")
AWQ_FP8 = method("W4A8_AWQ_BETA_CFG")
SVDQUANT = method("INT4_AWQ_CFG", {"method": "svdquant", "lowrank": RANK})
