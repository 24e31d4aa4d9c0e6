"""Every kernel on the device: checked against float64, and timed against PyTorch's kernels and the device's limits.

The same code runs on a CPU, at small sizes, through the operators' reference implementations in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...kernels.adaln import adaln_op, adaln_quantize_op
from ...kernels.attention import attention_op, attention_quantized_op, launch_attention_quantized
from ...kernels.blocks import block_values, quantize_blocks
from ...kernels.dequantize_4bit import dequantize_4bit_op, dequantize_4bit_reference
from ...kernels.dequantize_8bit import dequantize_8bit_op
from ...kernels.gelu import gelu_join_quantize_op
from ...kernels.gemm import scaled_linear_op
from ...kernels.int4 import GROUP, int4_linear_op, unpack
from ...kernels.int4_to_fp8 import column_scales, int4_to_fp8_op
from ...kernels.launch import FAILURES
from ...kernels.norm_rope import norm_rope_op, normalize_and_rotate, split_qkv
from ...kernels.norm_rope_quantize import norm_rope_quantize_op
from ...kernels.numeric import CODES, quantize_rows
from ...kernels.nvfp4 import nvfp4_linear_op
from ...kernels.residual import gate_residual_op
from ...model.dtypes import TORCH_DTYPES
from ...quant.formats import COMPUTE, FORMATS
from .step import sides
from .timing import DeviceTimer

BOUNDS = {"16-bit": 0.01, "fp8": 0.09, "int8": 0.06, "nvfp4": 0.14}
"""Largest ‖out − ref‖ / ‖ref‖ that passes, by what the operands are rounded to; the bound of products of codes is
`16-bit`."""


@dataclass(frozen=True)
class Shape:
    """Sizes to measure; the defaults are a 1024² edit with FLUX.1 Kontext."""

    hidden: int = 3072
    heads: int = 24
    mlp: int = 12288
    text: int = 512
    image: int = 8192
    dtype: torch.dtype = torch.bfloat16

    @property
    def tokens(self) -> int:
        return self.text + self.image

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SMALL = Shape(hidden=64, heads=2, mlp=128, text=5, image=40, dtype=torch.float32)


def error(out: Tensor, reference: Tensor) -> float:
    """‖out − ref‖ / ‖ref‖ in float64; infinite if any number is not finite."""
    out, reference = out.double(), reference.double()
    if not bool(torch.isfinite(out).all()):
        return float("inf")
    return float((out - reference).norm() / reference.norm())


def random(*shape: int, like: Shape, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(like.dtype)


def tables(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    angles = torch.rand(shape.tokens, shape.head_dim // 2, device=device) * 6.28
    return angles.cos(), angles.sin()


def correctness(shape: Shape, device: torch.device) -> dict[str, dict[str, Any]]:
    """Each kernel's error against float64 on fresh random data, with its bound."""
    found: dict[str, dict[str, Any]] = {}

    def note(name: str, out: Tensor, reference: Tensor, bound: float) -> None:
        measured = error(out, reference)
        found[name] = {"error": measured, "bound": bound, "passed": measured <= bound}

    hidden, heads, tokens = shape.hidden, shape.heads, shape.tokens
    x = random(1, tokens, hidden, like=shape, device=device)
    shift, scale, gate = random(1, 3, hidden, like=shape, device=device).unbind(1)
    wanted = F.layer_norm(x.double(), (hidden,), eps=1e-6) * (1 + scale.double()) + shift.double()
    note("adaln", adaln_op(x, shift, scale), wanted, BOUNDS["16-bit"])
    fused = random(1, tokens, hidden + shape.mlp, like=shape, device=device)
    joined = torch.cat((x.double(), F.gelu(fused[..., hidden:].double(), approximate="tanh")), -1)
    for format in CODES:
        codes, steps = adaln_quantize_op(x, shift, scale, format)
        note(f"adaln {format}", codes.double() * steps[..., None], wanted, BOUNDS[format])
        codes, steps = gelu_join_quantize_op(x, fused[..., hidden:], format)
        note(f"gelu_join {format}", codes.double() * steps[..., None], joined, BOUNDS[format])
    if "nvfp4" in sides(device):
        g = block_scale(device)
        rounded = block_values(*adaln_quantize_op(x, shift, scale, "nvfp4", g)) * g
        note("adaln nvfp4", rounded, wanted, BOUNDS["nvfp4"])
        rounded = block_values(*gelu_join_quantize_op(x, fused[..., hidden:], "nvfp4", None, g)) * g
        note("gelu_join nvfp4", rounded, joined, BOUNDS["nvfp4"])
    y = x.clone()
    gate_residual_op(y, gate, x)
    note("gate_residual", y, x.double() * (1 + gate.double()), BOUNDS["16-bit"])

    qkv = random(1, tokens, 3 * hidden, like=shape, device=device)
    cos, sin = tables(shape, device)
    norms = [1 + random(shape.head_dim, like=shape, device=device) / 4 for _ in range(4)]
    q, k, v = split_qkv(qkv, heads)
    q_wide, k_wide = (
        normalize_and_rotate(part, norms[index], norms[index + 2], shape.text, cos, sin)
        for index, part in enumerate((q, k))
    )
    q16, k16 = norm_rope_op(qkv, cos, sin, norms, heads, shape.text)
    note("norm_rope q", q16, q_wide, BOUNDS["16-bit"])
    note("norm_rope k", k16, k_wide, BOUNDS["16-bit"])
    reference = reference_attention(q_wide, k_wide, v)
    note("attention 16-bit", attention_op(q16, k16, v), reference, BOUNDS["16-bit"])
    for format in CODES:
        operands = norm_rope_quantize_op(qkv, cos, sin, norms, heads, shape.text, format)
        note(f"attention {format}", attention_quantized_op(*operands, shape.dtype), reference, BOUNDS[format])

    weight = torch.randn(shape.mlp, hidden, device=device)
    bias = random(shape.mlp, like=shape, device=device)
    out = torch.empty(1, tokens, shape.mlp, device=device, dtype=shape.dtype)
    for format in CODES:
        a, a_scale = quantize_rows(x.float(), format)
        codes, w_scale = quantize_rows(weight, format)
        restored = (codes.double() * w_scale.double()[:, None]).t()
        turned = dequantize_8bit_op(codes.t().contiguous(), w_scale, shape.dtype)
        note(f"dequantize {format}", turned, restored, BOUNDS["16-bit"])
        exact = (a.double() * a_scale[..., None].double()) @ restored
        out.fill_(float("nan"))
        scaled_linear_op(out, a, a_scale, codes, w_scale.to(shape.dtype), bias, None, None)
        note(f"scaled_gemm {format}", out, exact + bias.double(), BOUNDS["16-bit"])
    packed = torch.randint(0, 256, (hidden, shape.mlp // 2), device=device, dtype=torch.uint8)
    steps = torch.rand(hidden // GROUP, shape.mlp, device=device).to(shape.dtype)
    dense = unpack(packed, steps).double()
    by_column = column_scales(steps)
    codes = int4_to_fp8_op(packed, steps, by_column)
    note("int4_to_fp8", codes.double() * by_column.double()[:, None], dense.t(), BOUNDS["fp8"])
    for name, operands in four_bits(hidden, shape.mlp, shape.dtype, device).items():
        # The reference implementation in fp32; the tests compare it with float64.
        wide = dequantize_4bit_reference(*operands, torch.float32)
        note(f"dequantize {name}", dequantize_4bit_op(*operands, shape.dtype), wide, BOUNDS["16-bit"])
    low, up = (
        random(1, tokens, 32, like=shape, device=device),
        random(32, shape.mlp, like=shape, device=device),
    )
    branch = low.double() @ up.double()
    out.fill_(float("nan"))
    int4_linear_op(out, x, None, packed, steps, low, up, bias, None, None)
    note("int4_gemm 16-bit", out, x.double() @ dense + branch + bias.double(), BOUNDS["16-bit"])
    a, a_scale = quantize_rows(x.float(), "fp8")
    exact = (a.double() * a_scale[..., None].double()) @ dense + branch + bias.double()
    out.fill_(float("nan"))
    int4_linear_op(out, a, a_scale, packed, steps, low, up, bias, None, None)
    note("int4_gemm fp8", out, exact, BOUNDS["16-bit"])
    if "nvfp4" in sides(device):
        operands, exact = in_blocks(x, weight)
        out.fill_(float("nan"))
        nvfp4_linear_op(out, *operands, low, up, bias, None)
        note("nvfp4_gemm", out, exact + branch + bias.double(), BOUNDS["16-bit"])
    return found


def block_scale(device: torch.device) -> Tensor:
    """For NVFP4 inputs of normal distribution: the largest block scale belongs to a number of 12."""
    return torch.full((1,), 12 / (6 * 448), device=device)


def in_blocks(x: Tensor, weight: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """An NVFP4 product's operands of x [1, tokens, in] and weight [out, in], and the product of these in float64."""
    g = block_scale(x.device)
    a, (codes, tiles) = quantize_blocks(x.float(), g), quantize_blocks(weight.float()[None], g)
    scale = g * g
    exact = block_values(*a).double() @ block_values(codes, tiles)[0].double().t() * scale.double()
    return (*a, codes[0], tiles[0], scale), exact


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, a head at a time: all heads' scores at once would not fit."""
    heads = []
    for head in range(q.shape[1]):
        scores = q[:, head].double() @ k[:, head].double().transpose(-1, -2) / q.shape[-1] ** 0.5
        heads.append(torch.softmax(scores, -1) @ v[:, head].double())
    return torch.cat(heads, -1)


def passes(shape: Shape, timer: DeviceTimer, copy_gb_s: float) -> dict[str, dict[str, float]]:
    """The elementwise kernels: milliseconds, GB/s of what they must read and write, share of a copy's bandwidth."""
    device, hidden, tokens, size = timer.device, shape.hidden, shape.tokens, shape.dtype.itemsize
    x = random(1, tokens, hidden, like=shape, device=device)
    shift, scale, gate = random(1, 3, hidden, like=shape, device=device).unbind(1)
    fused = random(1, tokens, 3 * hidden + shape.mlp, like=shape, device=device)
    cos, sin = tables(shape, device)
    norms = [random(shape.head_dim, like=shape, device=device) for _ in range(4)]
    y, n, m = torch.empty_like(x), tokens * hidden, tokens * shape.mlp
    qkv, mlp, heads = fused[..., : 3 * hidden], fused[..., 3 * hidden :], shape.heads
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "adaln": (lambda: adaln_op(x, shift, scale), 2 * size * n),
        "adaln fp8": (lambda: adaln_quantize_op(x, shift, scale, "fp8"), (size + 1) * n),
        "adaln int8": (lambda: adaln_quantize_op(x, shift, scale, "int8"), (size + 1) * n),
        "gate_residual": (lambda: gate_residual_op(y, gate, x), 3 * size * n),
        "gelu_join fp8, mlp": (lambda: gelu_join_quantize_op(None, mlp, "fp8"), (size + 1) * m),
        "gelu_join fp8, both": (lambda: gelu_join_quantize_op(x, mlp, "fp8"), (size + 1) * (n + m)),
        "norm_rope 16-bit": (lambda: norm_rope_op(qkv, cos, sin, norms, heads, 0), 4 * size * n),
        "norm_rope fp8": (
            lambda: norm_rope_quantize_op(qkv, cos, sin, norms, heads, 0, "fp8"),
            3 * (size + 1) * n,
        ),
        "norm_rope int8": (
            lambda: norm_rope_quantize_op(qkv, cos, sin, norms, heads, 0, "int8"),
            (4 * size + 3) * n,
        ),
    }
    if "nvfp4" in sides(device):
        g, bytes = block_scale(device), size + 9 / 16
        runs |= {
            "adaln nvfp4": (lambda: adaln_quantize_op(x, shift, scale, "nvfp4", g), int(bytes * n)),
            "gelu_join nvfp4, mlp": (
                lambda: gelu_join_quantize_op(None, mlp, "nvfp4", None, g),
                int(bytes * m),
            ),
            "gelu_join nvfp4, both": (
                lambda: gelu_join_quantize_op(x, mlp, "nvfp4", None, g),
                int(bytes * (n + m)),
            ),
        }
    return shares(runs, timer, copy_gb_s)


def unpackings(shape: Shape, timer: DeviceTimer, copy_gb_s: float) -> dict[str, dict[str, float]]:
    """Unpacking 4-bit weights to a product's format, measured as in `passes`; the weight is a single block's
    linear1."""
    depth, channels, size = shape.hidden, 3 * shape.hidden + shape.mlp, shape.dtype.itemsize
    weights = depth * channels
    packed = torch.randint(0, 256, (depth, channels // 2), device=timer.device, dtype=torch.uint8)
    steps = torch.rand(depth // GROUP, channels, device=timer.device).to(shape.dtype)
    by_column = column_scales(steps)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "int4 to fp8": (lambda: int4_to_fp8_op(packed, steps, by_column), weights // 2 + weights),
    }
    for name, operands in four_bits(depth, channels, shape.dtype, timer.device).items():
        runs[name] = (
            partial(dequantize_4bit_op, *operands, shape.dtype),
            weights // 2 + size * weights + operands[2].nbytes,
        )
    return shares(runs, timer, copy_gb_s)


def four_bits(
    depth: int, channels: int, dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[Tensor, Tensor | None, Tensor, Tensor | None, bool]]:
    """Operands of `dequantize_4bit_op` with random codes and scales, by number format."""

    def random_tensor(stored: str, shape: tuple[int, ...]) -> Tensor:
        if stored == "U8":
            return torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
        scales = torch.rand(shape, device=device) + 0.5
        return scales.to(dtype if stored == COMPUTE else TORCH_DTYPES[stored])

    found = {}
    for name, format in FORMATS.items():
        if format.bits == 4:
            values, *scales = (random_tensor(*each[1:]) for each in format.layout((depth, channels)))
            found[name] = (values, *format.kernel_operands(*scales), format.transposed)
    return found


def shares(
    runs: dict[str, tuple[Callable[[], object], int]], timer: DeviceTimer, copy_gb_s: float
) -> dict[str, dict[str, float]]:
    """Times of kernels that move so many bytes. Ten runs a graph: one takes tens of microseconds, as a graph's
    launch."""
    found = {}
    for name, (run, bytes) in runs.items():
        time = timer.replayed(run, 10)
        rate = bytes / time / 1e6
        found[name] = {"ms": time, "gb_s": rate, "of_copy": rate / copy_gb_s}
    return found


def attentions(shape: Shape, timer: DeviceTimer) -> dict[str, dict[str, float]]:
    """Attention: PyTorch's flash and cuDNN in bf16 where available, ours in every format; TFLOP/s."""
    device, heads, tokens = timer.device, shape.heads, shape.tokens
    qkv = random(1, tokens, 3 * shape.hidden, like=shape, device=device)
    cos, sin = tables(shape, device)
    norms = [torch.ones(shape.head_dim, device=device, dtype=shape.dtype)] * 4
    q, k = norm_rope_op(qkv, cos, sin, norms, heads, 0)
    v = split_qkv(qkv, heads)[2]
    operations = 4 * tokens**2 * shape.hidden
    found: dict[str, dict[str, float]] = {}

    def note(name: str, run: Callable[[], object]) -> None:
        try:
            time = timer.replayed(run)
        except FAILURES:  # not in this library
            return
        found[name] = {"ms": time, "tflop_s": operations / time / 1e9}

    for name, backend in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("math", SDPBackend.MATH),
    ):
        if (name == "math") == (device.type == "cpu"):

            def library(backend: SDPBackend = backend) -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v)

            note(f"sdpa {name}", library)
    note("ours 16-bit", lambda: attention_op(q, k, v))
    for format in CODES:
        operands = norm_rope_quantize_op(qkv, cos, sin, norms, heads, 0, format)
        note(f"ours {format}", partial(attention_quantized_op, *operands, shape.dtype))
        if device.type == "cuda":
            exact = partial(launch_attention_quantized, dtype=shape.dtype, fast=False)
            note(f"ours {format}, fp32 sums per block", partial(exact, *operands))
    return found


def products(shape: Shape, timer: DeviceTimer) -> dict[str, dict[str, float]]:
    """A block's linears: cuBLAS in bf16 and FP8, ours in FP8, INT8, NVFP4 and INT4; TFLOP/s of each."""
    device, tokens = timer.device, shape.tokens
    found: dict[str, dict[str, float]] = {}
    sizes = {
        "qkv": (shape.hidden, 3 * shape.hidden),
        "linear1": (shape.hidden, 3 * shape.hidden + shape.mlp),
        "linear2": (shape.hidden + shape.mlp, shape.hidden),
    }
    for name, (depth, channels) in sizes.items():
        operations = 2 * tokens * depth * channels
        for candidate, run in candidates(shape, depth, channels, device).items():
            try:
                time = timer.replayed(run)
            except FAILURES:
                continue
            found[f"{name}, {candidate}"] = {"ms": time, "tflop_s": operations / time / 1e9}
    return found


def candidates(
    shape: Shape, depth: int, channels: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Functions that compute one linear, by name; each on the same random numbers in its format."""
    x = random(1, shape.tokens, depth, like=shape, device=device)
    weight = random(channels, depth, like=shape, device=device)
    bias = random(channels, like=shape, device=device)
    out = torch.empty(1, shape.tokens, channels, device=device, dtype=shape.dtype)
    runs: dict[str, Callable[[], object]] = {"cublas 16-bit": lambda: F.linear(x, weight, bias)}

    coded = {format: quantize_rows(x.float(), format) for format in CODES}

    def scaled(format: str) -> None:
        a, a_scale = coded[format]
        w, w_scale = quantize_rows(weight.float(), format)
        runs[f"ours {format}"] = lambda: scaled_linear_op(out, a, a_scale, w, w_scale, bias, None, None)
        if format == "fp8" and device.type == "cuda":
            runs["cublas fp8"] = lambda: torch._scaled_mm(
                a[0],
                w.t(),
                scale_a=a_scale.reshape(-1, 1),
                scale_b=w_scale[None],
                bias=bias,
                out_dtype=shape.dtype,
                use_fast_accum=True,
            )

    scaled("fp8")
    scaled("int8")
    if "nvfp4" in sides(device):
        operands, _ = in_blocks(x[:, :1], weight)
        a4, a4_scale = quantize_blocks(x.float(), block_scale(device))
        runs["ours nvfp4"] = lambda: nvfp4_linear_op(out, a4, a4_scale, *operands[2:], None, None, bias, None)
    packed = torch.randint(0, 256, (depth, channels // 2), device=device, dtype=torch.uint8)
    steps = torch.rand(depth // GROUP, channels, device=device).to(shape.dtype)
    runs["ours int4"] = lambda: int4_linear_op(out, x, None, packed, steps, None, None, bias, None, None)
    runs["int4 unpacked, cublas"] = lambda: torch.addmm(
        bias, x[0], dequantize_4bit_op(packed, None, steps, None, False, x.dtype)
    )
    a, a_scale = coded["fp8"]
    by_column = column_scales(steps)
    runs["ours int4, fp8 inputs"] = lambda: int4_linear_op(
        out, a, a_scale, packed, steps, None, None, bias, None, None
    )
    runs["int4 to fp8, ours"] = lambda: scaled_linear_op(
        out, a, a_scale, int4_to_fp8_op(packed, steps, by_column), by_column, bias, None, None
    )
    return runs
