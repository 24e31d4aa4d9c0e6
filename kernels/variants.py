"""Every kernel in every number format, as a transformer of given sizes launches it: what is compiled ahead of time.

Launches are made from `meta` tensors, so that they are the runtime's own to the last stride.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.dtypes import TORCH_DTYPES
from ..quant.formats import COMPUTE, FORMATS
from . import (
    adaln,
    attention,
    dequantize_4bit,
    dequantize_8bit,
    gelu,
    gemm,
    int4,
    int4_to_fp8,
    norm_rope,
    norm_rope_quantize,
    nvfp4,
    residual,
)
from .blocks import NVFP4, empty_blocks
from .epilogue import Epilogue
from .launch import FP8_CAPABILITY, Launch
from .numeric import CODES

TENSOR_CORES = {
    # What the SASS calls the instructions, by operand: Hopper's warpgroup and Blackwell's tcgen05 forms, or a warp's.
    "16-bit": {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"},
    "fp8": {80: "QMMA", 90: "QGMMA", 100: "UTCQMMA", 120: "QMMA"},
    "int8": {80: "IMMA", 90: "IGMMA", 100: "UTCIMMA", 120: "IMMA"},
    NVFP4: {100: "UTCOMMA", 120: "OMMA"},
}


@dataclass(frozen=True)
class Variant:
    """A launch to compile, and the kinds of tensor-core instruction that it must come out with."""

    name: str
    launch: Launch
    operands: tuple[str, ...] = ()

    def instructions(self, arch: int) -> tuple[re.Pattern[str], ...]:
        """What the SASS for compute capability `arch` must hold, one pattern for each kind of operand."""
        patterns = []
        for operand in self.operands:
            table = TENSOR_CORES[operand]
            oldest = max(key for key in table if key <= arch)
            patterns.append(re.compile(rf"\b{table[oldest]}\b"))
        return tuple(patterns)


@dataclass(frozen=True)
class Sizes:
    """Of the transformer that kernels are compiled for; the defaults are FLUX.1 Kontext's."""

    hidden: int = 3072
    heads: int = 24
    mlp: int = 12288
    ranks: tuple[int, ...] = (32,)
    """Of INT4's and NVFP4's low-rank branches; kernels for layers without one are always compiled."""
    compute: torch.dtype = torch.bfloat16
    text_tokens: int = 512
    image_tokens: int = 8192


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def activation_formats(arch: int) -> tuple[str, ...]:
    """What activations can be rounded to with a scale for each token, on compute capability `arch`."""
    return tuple(name for name in CODES if arch >= FORMATS[name].min_capability)


def has_nvfp4(arch: int) -> bool:
    """Whether activations can be rounded to NVFP4 on compute capability `arch`."""
    return arch >= nvfp4.NVFP4_CAPABILITY


def variants(arch: int, sizes: Sizes | None = None) -> Iterator[Variant]:
    """All launches of a transformer's step for compute capability `arch`, as 90 for 9.0."""
    sizes = sizes or Sizes()
    yield from elementwise(arch, sizes)
    yield from rope_variants(arch, sizes)
    yield from attention_variants(arch, sizes)
    yield from products(arch, sizes)


def elementwise(arch: int, sizes: Sizes) -> Iterator[Variant]:
    hidden, tokens, kind = sizes.hidden, sizes.text_tokens + sizes.image_tokens, sizes.compute
    x = meta(1, tokens, hidden, dtype=kind)
    vector = meta(1, 6, hidden, dtype=kind)[:, 0]
    scale = meta(1, tokens, dtype=torch.float32)
    fused = meta(1, tokens, 3 * hidden + sizes.mlp, dtype=kind)[..., 3 * hidden :]
    yield Variant("adaln", adaln.plan_adaln(x, vector, vector, x, None, ""))
    yield Variant("gate_residual", residual.plan_gate_residual(x, vector, x))
    middle = meta(1, tokens, sizes.mlp, dtype=kind)
    yield Variant("gelu_join, mlp", gelu.plan_gelu_join(None, middle, middle, None, ""))
    joint = (1, tokens, hidden + sizes.mlp)
    yield Variant("gelu_join", gelu.plan_gelu_join(x, fused, meta(*joint, dtype=kind), None, ""))
    for format in activation_formats(arch):
        codes = CODES[format]
        yield Variant(
            f"adaln {format}", adaln.plan_adaln(x, vector, vector, meta(*x.shape, dtype=codes), scale, format)
        )
        out = meta(*joint, dtype=codes)
        for ending, centred in (("", False), (", centred", True)):
            means = [meta(each, dtype=kind) if centred else None for each in (hidden + sizes.mlp, hidden)]
            both = gelu.plan_gelu_join(x, fused, out, scale, format, means[0])
            yield Variant(f"gelu_join {format}, both{ending}", both)
            plain = gelu.plan_gelu_join(x, None, meta(*x.shape, dtype=codes), scale, format, means[1])
            yield Variant(f"gelu_join {format}, plain{ending}", plain)
        yield Variant(
            f"gelu_join {format}, mlp",
            gelu.plan_gelu_join(None, middle, meta(*middle.shape, dtype=codes), scale, format),
        )
    if has_nvfp4(arch):
        yield from to_nvfp4(x, vector, fused, middle)


def to_nvfp4(x: Tensor, vector: Tensor, fused: Tensor, middle: Tensor) -> Iterator[Variant]:
    """The passes that round a linear's input to NVFP4, with the operands of those that round to other formats."""
    g = meta(1, dtype=torch.float32)
    yield Variant(
        "adaln nvfp4", adaln.plan_adaln(x, vector, vector, *empty_blocks(x, tuple(x.shape)), NVFP4, g)
    )
    for name, plain, mlp in (("both", x, fused), ("plain", x, None), ("mlp", None, middle)):
        _, shape = gelu.shape_of(plain, mlp)
        for ending, centred in (("", False), (", centred", True)):
            if centred and plain is None:
                continue
            mean = meta(shape[-1], dtype=x.dtype) if centred else None
            launch = gelu.plan_gelu_join(plain, mlp, *empty_blocks(x, shape), NVFP4, mean, g)
            yield Variant(f"gelu_join nvfp4, {name}{ending}", launch)


def rope_variants(arch: int, sizes: Sizes) -> Iterator[Variant]:
    tokens, head_dim = sizes.text_tokens + sizes.image_tokens, sizes.hidden // sizes.heads
    table = meta(tokens, head_dim // 2, dtype=torch.float32)
    norms = [meta(head_dim, dtype=sizes.compute)] * 4
    for where, width in (("double", 3 * sizes.hidden), ("single", 3 * sizes.hidden + sizes.mlp)):
        qkv = meta(1, tokens, width, dtype=sizes.compute)[..., : 3 * sizes.hidden]
        text = sizes.text_tokens if where == "double" else 0
        operands = (qkv, table, table, norms, sizes.heads, text)
        q, k = norm_rope.empty_qk(qkv, sizes.heads)
        yield Variant(f"norm_rope 16-bit, {where}", norm_rope.plan_norm_rope(*operands, q, k))
        for format in activation_formats(arch) if arch >= FP8_CAPABILITY else ():
            mean = meta(1, sizes.heads, head_dim, dtype=torch.float32) if format == "int8" else None
            outputs = norm_rope_quantize.empty_outputs(qkv, sizes.heads, format)
            launch = norm_rope_quantize.plan_norm_rope_quantize(*operands, format, mean, outputs)
            yield Variant(f"norm_rope {format}, {where}", launch)
            if format == "int8":
                blocks = tokens // norm_rope_quantize.BLOCK
                sums = meta(1, sizes.heads, blocks, head_dim, dtype=torch.float32)
                yield Variant(f"key_sum, {where}", norm_rope_quantize.plan_key_sum(*operands, sums))


def attention_variants(arch: int, sizes: Sizes, head_dims: tuple[int, ...] = ()) -> Iterator[Variant]:
    tokens, heads = sizes.text_tokens + sizes.image_tokens, sizes.heads
    for head_dim in head_dims or (sizes.hidden // sizes.heads,):
        out = meta(1, tokens, heads * head_dim, dtype=sizes.compute)
        qkv = meta(1, tokens, 3 * heads * head_dim, dtype=sizes.compute)
        values = norm_rope.split_qkv(qkv, heads)[2]
        q = meta(1, heads, tokens, head_dim, dtype=sizes.compute)
        yield Variant(
            f"attention 16-bit, {head_dim}",
            attention.plan_attention(q, q, values, out, arch=arch),
            ("16-bit",),
        )
        for format in activation_formats(arch) if arch >= FP8_CAPABILITY else ():
            q, q_scale, k, k_scale, v, v_scale = norm_rope_quantize.empty_outputs(qkv, heads, format)
            launch = attention.plan_attention(q, k, v, out, (q_scale, k_scale, v_scale), arch=arch)
            kinds = ("fp8",) if format == "fp8" else ("int8", "fp8")
            yield Variant(f"attention {format}, {head_dim}", launch, kinds)


def int4_weight(depth: int, channels: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    return meta(depth, channels // 2, dtype=torch.uint8), meta(depth // int4.GROUP, channels, dtype=kind)


def unpackings(name: str, depth: int, channels: int, dtype: torch.dtype) -> Iterator[Variant]:
    """Unpacking a weight [in, out] in each number format; sizes are arguments, so one compiled kernel serves all."""
    dense = meta(depth, channels, dtype=dtype)
    # The order decides the numbers in the names of a bundle's files.
    for format in sorted(FORMATS.values(), key=lambda each: (each.bits, each.name)):
        values, *scales = (
            meta(*shape, dtype=dtype if stored == COMPUTE else TORCH_DTYPES[stored])
            for _, stored, shape in format.layout((depth, channels))
        )
        table, scale, zeros = format.kernel_operands(*scales)
        if format.bits == 8:
            launch = dequantize_8bit.plan_dequantize_8bit(values, scale, dense)
        else:
            out = dense.t() if format.transposed else dense
            launch = dequantize_4bit.plan_dequantize_4bit(values, table, scale, zeros, format.transposed, out)
        yield Variant(f"dequantize {format.name}, {name}", launch)


def nvfp4_products(arch: int, sizes: Sizes, name: str, depth: int, epilogue: Epilogue) -> Iterator[Variant]:
    """A linear with inputs and weights in NVFP4; its output is that of `epilogue`."""
    (batch, tokens, channels), kind = epilogue.out.shape, epilogue.out.dtype
    a = empty_blocks(epilogue.out, (batch, tokens, depth))
    weight, w_scale = (each[0] for each in empty_blocks(epilogue.out, (1, channels, depth)))
    scale = meta(1, dtype=torch.float32)
    for rank in sorted({0, *sizes.ranks}):
        low = meta(batch, tokens, rank, dtype=kind) if rank else None
        up = meta(rank, channels, dtype=kind) if rank else None
        launch = nvfp4.plan_nvfp4_linear(*a, weight, w_scale, scale, low, up, epilogue, arch=arch)
        branch = f", rank {rank}" if rank else ""
        yield Variant(f"nvfp4_gemm, {name}{branch}", launch, (NVFP4, "16-bit") if rank else (NVFP4,))


def products(arch: int, sizes: Sizes) -> Iterator[Variant]:
    """A block's linears with the epilogue that each has."""
    hidden, mlp, kind = sizes.hidden, sizes.mlp, sizes.compute
    tokens = sizes.image_tokens
    linears = {
        "qkv": (hidden, 3 * hidden, "plain"),
        "proj": (hidden, hidden, "residual"),
        "mlp.0": (hidden, mlp, "plain"),
        "mlp.0, gelu": (hidden, mlp, "gelu"),
        "mlp.2": (mlp, hidden, "residual"),
        "linear1": (hidden, 3 * hidden + mlp, "plain"),
        "linear2": (hidden + mlp, hidden, "residual"),
    }
    for name, (depth, channels, ending) in linears.items():
        bias = meta(channels, dtype=kind)
        gate = meta(1, 6, hidden, dtype=kind)[:, 0] if ending == "residual" else None
        for format in activation_formats(arch):
            out = meta(1, tokens, channels, dtype=CODES[format] if ending == "gelu" else kind)
            out_scale = meta(1, dtype=torch.float32) if ending == "gelu" else None
            scale = meta(1, tokens, dtype=torch.float32)
            a = meta(1, tokens, depth, dtype=CODES[format])
            weight, w_scale = meta(channels, depth, dtype=CODES[format]), meta(channels, dtype=kind)
            yield Variant(
                f"scaled_gemm {format}, {name}",
                gemm.plan_scaled_linear(
                    a, scale, weight, w_scale, Epilogue(out, bias, gate, out_scale), arch=arch
                ),
                (format,),
            )
        if ending == "gelu":
            continue
        if has_nvfp4(arch):
            yield from nvfp4_products(
                arch, sizes, name, depth, Epilogue(meta(1, tokens, channels, dtype=kind), bias, gate)
            )
        packed, scales = int4_weight(depth, channels, kind)
        if arch >= FP8_CAPABILITY:
            codes, by_column = meta(channels, depth, dtype=CODES["fp8"]), meta(channels, dtype=torch.float32)
            yield Variant(
                f"int4_to_fp8, {name}", int4_to_fp8.plan_int4_to_fp8(packed, scales, by_column, codes, arch)
            )
        yield from unpackings(name, depth, channels, kind)
        out = meta(1, tokens, channels, dtype=kind)
        for format in ("16-bit", "fp8") if arch >= FP8_CAPABILITY else ("16-bit",):
            coded = format != "16-bit"
            a = meta(1, tokens, depth, dtype=CODES[format] if coded else kind)
            by_row = meta(1, tokens, dtype=torch.float32) if coded else None
            for rank in sorted({0, *sizes.ranks}):
                low = meta(1, tokens, rank, dtype=kind) if rank else None
                up = meta(rank, channels, dtype=kind) if rank else None
                launch = int4.plan_int4_linear(
                    a, by_row, packed, scales, low, up, Epilogue(out, bias, gate), arch=arch
                )
                kinds = (("fp8",) if coded else ("16-bit",)) + (("16-bit",) if coded and rank else ())
                branch = f", rank {rank}" if rank else ""
                yield Variant(f"int4_gemm {format}, {name}{branch}", launch, kinds)
