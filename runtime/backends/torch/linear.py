"""The transformer's linears on our kernels, in every number format: one pass prepares the inputs, and products include
their epilogue.

`normalized(x, shift, scale)` and `joined(plain, mlp)` make the `PreparedInput`; `product(input, out, gate)` writes the
product into a view, or adds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....compute_capability import dotted
from ....errors import KontextError
from ....kernels.adaln import adaln_op, adaln_quantize_op
from ....kernels.autotune import fastest
from ....kernels.blocks import NVFP4
from ....kernels.gelu import gelu_join_op, gelu_join_quantize_op
from ....kernels.gemm import scaled_linear_op
from ....kernels.int4 import int4_linear_op
from ....kernels.int4_to_fp8 import column_scales, int4_to_fp8_op
from ....kernels.launch import FP8_CAPABILITY, capability, device_capability
from ....kernels.nvfp4 import by_output, nvfp4_linear_op
from ....kernels.residual import gate_residual_op
from ....quant.formats import FORMATS
from ....quant.formats.base import BLOCK_GEMM, INT4_GEMM, SCALED_GEMM, InputRounding
from ....quant.gpus import ARCHITECTURES
from .weights import StoredLinear

SIXTEEN_BITS = "16-bit"

ACTIVATIONS = (
    "auto",
    SIXTEEN_BITS,
    *(name for name in FORMATS if any(name in format.kernel_inputs for format in FORMATS.values())),
)


@dataclass(frozen=True)
class PreparedInput:
    """A linear's input [batch, tokens, in]: values or codes, of NVFP4 two a byte; the codes' scales; and its product
    with the low-rank branch's `down`."""

    values: Tensor
    scale: Tensor | None = None
    low: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.values.shape[0] * self.values.shape[1]


@dataclass(frozen=True)
class KernelLinear:
    """A linear in the layout that its kernel takes.

    Args:
        stored: as in the bundle; transposed to [out, in] for `SCALED_GEMM` and `BLOCK_GEMM`.
        activations: "16-bit", or the format that its input is rounded to.
        kernel: that multiplies by the stored weight, as in `NumberFormat`; "": the weight is unpacked to 16 bits.
        by_column: the scales [out] with which an INT4 weight is converted to FP8, if its input is FP8.
        of_blocks: fp32 [1], the scale of all NVFP4 inputs times the weight's, if its input is NVFP4.
    """

    stored: StoredLinear
    activations: str = SIXTEEN_BITS
    kernel: str = ""
    by_column: Tensor | None = None
    of_blocks: Tensor | None = None

    @classmethod
    def of(cls, stored: StoredLinear, activations: str) -> KernelLinear:
        """With the requested activations if the weight's kernel takes them, else 16-bit ones."""
        if not stored.format:
            return cls(stored)
        format = FORMATS[stored.format]
        rounded = activations in format.kernel_inputs
        if format.kernel == SCALED_GEMM and rounded:
            turned = replace(stored, weight=stored.weight.t().contiguous(), transposed=True)
            return cls(turned, activations, SCALED_GEMM)
        if format.kernel == BLOCK_GEMM and rounded:
            return cls.in_blocks(stored)
        if format.kernel == INT4_GEMM:
            if rounded and stored.scale is not None:
                return cls(stored, activations, INT4_GEMM, column_scales(stored.scale))
            return cls(stored, kernel=INT4_GEMM)
        return cls(stored)

    @classmethod
    def in_blocks(cls, stored: StoredLinear) -> KernelLinear:
        """An NVFP4 weight with NVFP4 inputs if calibration found a scale for these, else with 16-bit ones."""
        scale, table, of_inputs = stored.scale, stored.table, stored.input_scale
        if of_inputs is None or scale is None or table is None:
            return cls(stored)
        weight, tiles = by_output(stored.weight, scale)
        turned = replace(stored, weight=weight, scale=tiles, transposed=True)
        one = FORMATS[NVFP4].codes.index(1.0)  # stands for the weight's own scale
        return cls(turned, NVFP4, BLOCK_GEMM, None, of_inputs * table[one])

    @property
    def channels(self) -> int:
        return self.stored.channels

    @property
    def static(self) -> bool:
        """Whether its input can be rounded before all of a row is known."""
        return (
            self.activations not in (SIXTEEN_BITS, NVFP4)
            and self.stored.input_scale is not None
            and self.stored.down is None
            and self.stored.input_mean is None
            and self.stored.input_factor is None
        )

    @property
    def block_scale(self) -> Tensor | None:
        """The scale of all inputs with which they are rounded to NVFP4; None for other formats."""
        return self.stored.input_scale if self.activations == NVFP4 else None

    def normalized(self, x: Tensor, shift: Tensor, scale: Tensor) -> PreparedInput:
        """AdaLN of x [batch, tokens, in], as this linear's input."""
        if self.stored.input_mean is not None:  # centring is free here
            shift = shift - self.stored.input_mean
        if self.stored.input_factor is not None:  # and so is scaling
            shift, scale = shift * self.stored.input_factor, (1 + scale) * self.stored.input_factor - 1
        if self.activations == SIXTEEN_BITS or self.stored.down is not None:
            return self.prepared(adaln_op(x, shift, scale))
        return PreparedInput(*adaln_quantize_op(x, shift, scale, self.activations, self.block_scale))

    def joined(self, plain: Tensor | None, mlp: Tensor | None) -> PreparedInput:
        """concat(plain, gelu(mlp)), as this linear's input."""
        mean, factor = self.stored.input_mean, self.stored.input_factor
        if self.activations == SIXTEEN_BITS or self.stored.down is not None or factor is not None:
            values = plain if mlp is None and plain is not None else gelu_join_op(plain, mlp)
            values = values if mean is None else values - mean
            return self.prepared(values if factor is None else values * factor)
        return PreparedInput(*gelu_join_quantize_op(plain, mlp, self.activations, mean, self.block_scale))

    def prepared(self, values: Tensor) -> PreparedInput:
        """16-bit values, rounded to codes if this linear takes these."""
        values = values.contiguous()
        low = None if self.stored.down is None else values @ self.stored.down
        if self.activations == SIXTEEN_BITS:
            return PreparedInput(values, None, low)
        codes, scale = gelu_join_quantize_op(values, None, self.activations, None, self.block_scale)
        return PreparedInput(codes, scale, low)

    def coded(self, codes: Tensor) -> PreparedInput:
        """Codes at the static scale, the output of a `product` with `out_scale`."""
        step = self.stored.input_scale
        if step is None:
            raise RuntimeError("this linear has no static scale")
        return PreparedInput(codes, step.expand(codes.shape[:2]).contiguous())

    def product(
        self, given: PreparedInput, out: Tensor, gate: Tensor | None = None, out_scale: Tensor | None = None
    ) -> None:
        """out = product + bias, out += gate * (product + bias), or out = codes of gelu(product + bias) at
        `out_scale`."""
        stored = self.stored
        if self.kernel == INT4_GEMM:
            self.int4(given, out, gate, out_scale)
        elif self.kernel == BLOCK_GEMM:
            self.blocks(given, out, gate)
        elif self.kernel == SCALED_GEMM:
            self.scaled(given, stored.weight, stored.scale, out, gate, out_scale)
        else:
            self.wide(given, stored.dense(given.values.dtype), out, gate)

    def scaled(
        self,
        given: PreparedInput,
        weight: Tensor,
        weight_scale: Tensor | None,
        out: Tensor,
        gate: Tensor | None,
        out_scale: Tensor | None,
    ) -> None:
        """FP8 or INT8 operands, the weight [out, in] with a scale a row: our kernel, or cuBLAS through
        torch._scaled_mm where that is faster."""
        stored, scale = self.stored, given.scale
        if scale is None or weight_scale is None:
            raise RuntimeError("codes go with scales")

        def ours() -> None:
            scaled_linear_op(out, given.values, scale, weight, weight_scale, stored.bias, gate, out_scale)

        def library() -> None:
            y = torch._scaled_mm(
                given.values.flatten(0, 1),
                weight.t(),
                scale_a=scale.reshape(-1, 1),
                scale_b=weight_scale.float().reshape(1, -1),
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
            finish(y.view(out.shape), stored.bias, out, gate)

        fits = (
            given.values.is_cuda
            and given.values.dtype == torch.float8_e4m3fn
            and out.dtype == torch.bfloat16
            and capability(given.values) >= FP8_CAPABILITY
            and all(side % 16 == 0 for side in weight.shape)
        )
        key = f"fp8 {given.rows}x{'x'.join(map(str, weight.shape))} {ending(gate)}"
        # The first candidate is tried first; products that write codes have no other.
        if fits and out_scale is None:
            fastest(key, {"triton": ours, "cublas": library}, changes=out if gate is not None else None)()
        else:
            ours()
        self.add_branch(given, out, gate)

    def int4(self, given: PreparedInput, out: Tensor, gate: Tensor | None, out_scale: Tensor | None) -> None:
        """INT4 weights unpacked in registers; or all at once to the inputs' format, which can be faster for many
        rows."""
        stored, by_column = self.stored, self.by_column
        packed, scales = stored.weight, stored.scale
        assert scales is not None

        def fused() -> None:
            int4_linear_op(
                out,
                given.values,
                given.scale,
                packed,
                scales,
                given.low,
                stored.up,
                stored.bias,
                gate,
                out_scale,
            )

        def unpacked() -> None:
            if by_column is None:
                self.wide(given, stored.dense(given.values.dtype), out, gate)
            else:
                codes = int4_to_fp8_op(packed, scales, by_column)
                self.scaled(given, codes, by_column, out, gate, out_scale)

        if given.values.is_cuda and given.values.dtype == torch.float32:  # not tf32
            unpacked()
        elif given.values.is_cuda and out_scale is None:
            key = f"int4 {self.activations} {given.rows}x{packed.shape[0]}x{self.channels} {ending(gate)}"
            fastest(key, {"triton": fused, "unpacked": unpacked}, changes=out if gate is not None else None)()
        else:
            fused()

    def blocks(self, given: PreparedInput, out: Tensor, gate: Tensor | None) -> None:
        """NVFP4 operands with block scales, the weight [out, in / 2]."""
        stored = self.stored
        nvfp4_linear_op(
            out,
            given.values,
            given.scale,
            stored.weight,
            stored.scale,
            self.of_blocks,
            given.low,
            stored.up,
            stored.bias,
            gate,
        )

    def wide(self, given: PreparedInput, weight: Tensor, out: Tensor, gate: Tensor | None) -> None:
        """16-bit operands through cuBLAS (or the CPU's library); straight into `out` where possible."""
        bias = self.stored.bias
        if gate is None and bias is not None and in_place(out):
            torch.addmm(bias, given.values[0], weight, out=out[0])
            self.add_branch(given, out)
            return
        y = given.values @ weight
        self.add_branch(given, y)
        finish(y, bias, out, gate)

    def add_branch(self, given: PreparedInput, out: Tensor, gate: Tensor | None = None) -> None:
        """out += low-rank branch, or += gate * it; without a temporary of the output's size where possible."""
        up = self.stored.up
        if given.low is None or up is None:
            return
        if gate is None and (out.is_contiguous() or in_place(out)):
            rows = out.flatten(0, 1) if out.is_contiguous() else out[0]
            rows.addmm_(given.low.flatten(0, 1), up)
        else:
            add(given.low @ up, out, gate)


def in_place(out: Tensor) -> bool:
    """Whether a library's product can be written into `out` [batch, tokens, channels], a strided view."""
    return out.shape[0] == 1 and not torch.compiler.is_compiling()


def ending(gate: Tensor | None) -> str:
    return "bias" if gate is None else "gate"


def finish(y: Tensor, bias: Tensor | None, out: Tensor, gate: Tensor | None) -> None:
    """The epilogue of a library's product."""
    add(y if bias is None else y.add_(bias), out, gate, replace=True)


def add(y: Tensor, out: Tensor, gate: Tensor | None, replace: bool = False) -> None:
    if gate is not None:
        gate_residual_op(out, gate, y)
    elif replace:
        out.copy_(y)
    else:
        out.add_(y)


def choose_activations(request: str, weights: set[str], device: torch.device, calibrated: bool = True) -> str:
    """What the inputs of quantized linears are rounded to: "16-bit" (not at all), or one of the number formats.

    "auto" keeps 16 bits on a CPU, as ONNX Runtime does with these bundles. On a GPU weights whose format can round its
    inputs get inputs of the same format, if the GPU's tensor cores have it; others get 16-bit inputs.

    Args:
        request: one of `ACTIVATIONS`.
        weights: names of the number formats of the weights.
        device: that computes.
        calibrated: whether any weight has a scale of its inputs from calibration, without which none is rounded to
            NVFP4.

    Raises:
        KontextError: unknown, or something that the weights or the GPU cannot do.
    """
    if request not in ACTIVATIONS:
        raise KontextError(f"unknown activations {request!r}: choose from {', '.join(ACTIVATIONS)}")
    if request == SIXTEEN_BITS or (request == "auto" and device.type == "cpu"):
        return SIXTEEN_BITS
    arch = device_capability(device) if device.type == "cuda" else None
    if request == "auto":
        rounded = (name for name in ACTIVATIONS if name in weights and is_supported(name, arch))
        return next(rounded, SIXTEEN_BITS)
    takers = [name for name, format in FORMATS.items() if request in format.kernel_inputs]
    if not is_supported(request, arch):
        needed = FORMATS[request].min_capability
        raise KontextError(
            f"{request.upper()} activations need compute capability {dotted(needed)} ({ARCHITECTURES[needed]}), this "
            f"GPU has {dotted(arch or 0)}"
        )
    if not weights & set(takers):
        names = " or ".join(name.upper() for name in takers)
        raise KontextError(
            f"{request.upper()} activations need {names} weights, which this bundle's transformer does not have"
        )
    if not calibrated and FORMATS[request].input_roundings == (InputRounding.BLOCKS,):
        raise KontextError(
            f"{request.upper()} activations need scales from calibration, which this bundle's transformer does not "
            f"have: export with --{request} and --calibrate, without --weight-only"
        )
    return request


def is_supported(name: str, arch: int | None) -> bool:
    """Whether a GPU of compute capability `arch` computes in a format; a CPU (None) emulates all of them."""
    return arch is None or arch >= FORMATS[name].min_capability
