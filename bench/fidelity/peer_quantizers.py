"""Other libraries' quantizers, each run by its own code on a linear's weight [out, in].

The result is what the library multiplies with, in fp32, and the bits that it stores. A library that keeps scales in the
weight's dtype gets a 16-bit weight, as its users would pass, so that scales cost 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ...quant.ggml import HALF, dequantize_rows, form_for, quantize_rows

GROUP = 64
"""Group size where a library lets its user choose: that of our INT4."""


@dataclass(frozen=True)
class QuantizedWeight:
    """`values` dequantized, fp32 [out, in]; `bits` stored for them, scales and zero points included. `form` names the
    format where a peer has several, by shape."""

    values: Tensor
    bits: int
    form: str = ""


Quantizer = Callable[[Tensor], QuantizedWeight]


def linear(weight: Tensor, dtype: torch.dtype) -> nn.Sequential:
    """A network with one linear, because libraries quantize the children of a network."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return nn.Sequential(layer)


def bits_of(*tensors: Tensor | None) -> int:
    return sum(8 * tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def torchao_eight_bits(config: str) -> Quantizer:
    """torchao's 8-bit weights with scales per output channel; `config` names a weight-only configuration of it."""

    def quantize(weight: Tensor) -> QuantizedWeight:
        from torchao import quantization

        network = linear(weight, torch.float32)
        quantization.quantize_(network, getattr(quantization, config)(set_inductor_config=False))
        stored: Any = network[0].weight
        # Both are symmetric: the zero points stored for INT8 are all zero and not counted.
        return QuantizedWeight(stored.dequantize().float(), 8 * weight.numel() + bits_of(stored.scale))

    return quantize


def torchao_int4(weight: Tensor) -> QuantizedWeight:
    """INT4 with bf16 scales and zero points, by the functions that torchao makes its packed tensors with, since those
    cannot be dequantized."""
    from torchao.quantization import quant_primitives as own

    weight, block = weight.bfloat16(), [1, GROUP]
    scales, zeros = own._choose_qparams_affine_tinygemm(
        weight, own.MappingType.ASYMMETRIC, block, torch.int32, 0, 15, 1e-6, None, torch.bfloat16
    )
    levels = own._quantize_affine_tinygemm(weight, block, scales, zeros, torch.int32, 0, 15)
    values = own._dequantize_affine_tinygemm(
        levels, block, scales, zeros, torch.int32, 0, 15, output_dtype=torch.float32
    )
    return QuantizedWeight(values, 4 * weight.numel() + bits_of(scales.bfloat16(), zeros.bfloat16()))


def bitsandbytes_nf4(double: bool) -> Quantizer:
    """NF4 in blocks of 64 with an fp32 maximum each, or an 8-bit one (`double` quantization)."""

    def quantize(weight: Tensor) -> QuantizedWeight:
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(
            weight.float().contiguous(), blocksize=GROUP, compress_statistics=double, quant_type="nf4"
        )
        second = (state.state2.absmax, state.offset) if double else ()
        values = functional.dequantize_4bit(packed, state)
        return QuantizedWeight(values.float(), bits_of(packed, state.absmax, *second))

    return quantize


def quanto(kind: str, bits: int) -> Quantizer:
    """optimum-quanto's weights in groups that it chooses (4 bits) or per output channel (8 bits), uncalibrated."""

    def quantize(weight: Tensor) -> QuantizedWeight:
        own = load_quanto()
        network = linear(weight, torch.float16)
        own.quantize(network, weights=getattr(own, kind))
        own.freeze(network)
        stored: Any = network[0].weight
        scales = [getattr(stored, name, None) for name in ("_scale", "_shift")]
        return QuantizedWeight(stored.dequantize().float(), bits * weight.numel() + bits_of(*scales))

    return quantize


def load_quanto() -> Any:
    """optimum-quanto, which else compiles an extension for minutes, only to unpack bits."""
    from optimum import quanto
    from optimum.quanto import library

    if library.extensions.cpp.ext._lib is None:
        library.extensions.cpp.ext._lib = SimpleNamespace(unpack=unpack_bits)
    return quanto


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Undoes quanto's packing: a byte holds one value of each part of the first axis, the first part's lowest."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def gguf(kind: str) -> Quantizer:
    """llama.cpp's block formats as the gguf package writes them, with fp16 scales."""

    def quantize(weight: Tensor) -> QuantizedWeight:
        from gguf import GGMLQuantizationType, quants

        form = GGMLQuantizationType[kind]
        stored = quants.quantize(weight.float().contiguous().numpy(), form)
        values = torch.from_numpy(quants.dequantize(stored, form)).reshape(weight.shape)
        return QuantizedWeight(values, 8 * stored.nbytes)

    return quantize


def ggml(kind: str, importance: Tensor | None = None) -> Quantizer:
    """A format as ggml's own library writes it, or what llama.cpp takes instead where it does not fit; `importance`
    [in] weighs errors by columns."""

    def quantize(weight: Tensor) -> QuantizedWeight:
        form = form_for(kind, weight.shape[1])
        if form == HALF:
            return QuantizedWeight(weight.half().float(), 16 * weight.numel(), form)
        stored = quantize_rows(form, weight, importance)
        return QuantizedWeight(dequantize_rows(form, stored, weight.shape), 8 * len(stored), form)

    return quantize


def modelopt(bits: int | tuple[int, int], group: int | None) -> Quantizer:
    """NVIDIA Model Optimizer's weight quantizer, with one scale per matrix, or per `group`.

    Scales count 16 bits, as it exports them for a 16-bit model.
    """

    def quantize(weight: Tensor) -> QuantizedWeight:
        from modelopt.torch.quantization.config import QuantizerAttributeConfig
        from modelopt.torch.quantization.nn import TensorQuantizer

        blocks = None if group is None else {-1: group}
        own = TensorQuantizer(QuantizerAttributeConfig(num_bits=bits, block_sizes=blocks, axis=None))
        scales = 1 if group is None else weight.numel() // group
        width = bits if isinstance(bits, int) else 1 + sum(bits)
        return QuantizedWeight(own(weight.float()).float(), width * weight.numel() + 16 * scales)

    return quantize
