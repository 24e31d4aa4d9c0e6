"""The transformer's linears on our kernels: inputs prepared in one pass, products with their epilogue, in every format.

linear.normalized(x, shift, scale) and linear.joined(plain, mlp) make the `Input`; linear.product(input, out, gate)
writes or adds the product into a view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....compute_capability import dotted
from ....errors import KontextError
from ....kernels.adaln import adaln_op, adaln_quantize_op
from ....kernels.autotune import fastest
from ....kernels.gelu import gelu_join_op, gelu_join_quantize_op
from ....kernels.gemm import scaled_linear_op
from ....kernels.int4 import int4_linear_op
from ....kernels.int4_to_fp8 import column_scales, int4_to_fp8_op
from ....kernels.launch import FP8_CAPABILITY, capability, device_capability
from ....kernels.residual import gate_residual_op
from .weights import StoredLinear

ACTIVATIONS = ("auto", "16-bit", "fp8", "int8")


@dataclass(frozen=True)
class Input:
    """A linear's input [batch, tokens, in]: values or codes, the codes' scales, and the low-rank branch's own part."""

    values: Tensor
    scale: Tensor | None = None
    low: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.values.shape[0] * self.values.shape[1]


@dataclass(frozen=True)
class KernelLinear:
    """A linear in the layout that its kernel wants.

    Args:
        stored: as the bundle has it; for FP8 and INT8 activations with an FP8 or INT8 weight transposed to [out, in].
        activations: "16-bit", "fp8" or "int8": what its input is turned to.
        by_column: the scales [out] with which an INT4 weight becomes FP8, where its input is.
    """

    stored: StoredLinear
    activations: str
    by_column: Tensor | None = None

    @classmethod
    def of(cls, stored: StoredLinear, activations: str) -> KernelLinear:
        """`activations` as asked for; a linear whose weight does not go with them keeps 16 bits."""
        chosen = "16-bit"
        if stored.format in ("fp8", "int8") and activations == stored.format:
            chosen = stored.format
            stored = replace(stored, weight=stored.weight.t().contiguous())
        elif stored.format == "int4" and stored.scale is not None and activations == "fp8":
            return cls(stored, "fp8", column_scales(stored.scale))
        return cls(stored, chosen)

    @property
    def channels(self) -> int:
        turned = self.activations != "16-bit" and self.stored.format != "int4"
        return self.stored.weight.shape[0] if turned else self.stored.channels

    @property
    def static(self) -> bool:
        """Whether its input can be quantized before all of a row is known."""
        return (
            self.activations != "16-bit"
            and self.stored.input_scale is not None
            and self.stored.down is None
            and self.stored.input_mean is None
        )

    def normalized(self, x: Tensor, shift: Tensor, scale: Tensor) -> Input:
        """AdaLN of x [batch, tokens, in], as this linear's input."""
        if self.stored.input_mean is not None:  # centring costs nothing here
            shift = shift - self.stored.input_mean
        if self.activations == "16-bit" or self.stored.down is not None:
            return self.prepared(adaln_op(x, shift, scale))
        return Input(*adaln_quantize_op(x, shift, scale, self.activations))

    def joined(self, plain: Tensor | None, mlp: Tensor | None) -> Input:
        """concat(plain, gelu(mlp)), as this linear's input."""
        mean = self.stored.input_mean
        if self.activations == "16-bit" or self.stored.down is not None:
            values = plain if mlp is None and plain is not None else gelu_join_op(plain, mlp)
            return self.prepared(values if mean is None else values - mean)
        return Input(*gelu_join_quantize_op(plain, mlp, self.activations, mean))

    def prepared(self, values: Tensor) -> Input:
        """16-bit values, quantized where this linear wants codes."""
        values = values.contiguous()
        low = None if self.stored.down is None else values @ self.stored.down
        if self.activations == "16-bit":
            return Input(values, None, low)
        codes, scale = gelu_join_quantize_op(values, None, self.activations)
        return Input(codes, scale, low)

    def coded(self, codes: Tensor) -> Input:
        """Codes at the static scale, as `product` with `out_scale` has made them."""
        step = self.stored.input_scale
        if step is None:
            raise RuntimeError("this linear has no static scale")
        return Input(codes, step.expand(codes.shape[:2]).contiguous())

    def product(
        self, given: Input, out: Tensor, gate: Tensor | None = None, out_scale: Tensor | None = None
    ) -> None:
        """out = product + bias, out += gate * (product + bias), or out = codes of gelu(product + bias) at
        `out_scale`."""
        stored = self.stored
        if stored.format == "int4":
            self.int4(given, out, gate, out_scale)
        elif self.activations != "16-bit":
            self.scaled(given, stored.weight, stored.scale, out, gate, out_scale)
        else:
            self.wide(given, stored.dense(given.values.dtype), out, gate)

    def scaled(
        self,
        given: Input,
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
            and self.activations == "fp8"
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

    def int4(self, given: Input, out: Tensor, gate: Tensor | None, out_scale: Tensor | None) -> None:
        """INT4 weights unpacked in registers; or all at once, to the inputs' format, where there are many rows."""
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

    def wide(self, given: Input, weight: Tensor, out: Tensor, gate: Tensor | None) -> None:
        """16-bit operands through cuBLAS (or the CPU's library); straight into `out` where it can."""
        bias = self.stored.bias
        if gate is None and bias is not None and in_place(out):
            torch.addmm(bias, given.values[0], weight, out=out[0])
            self.add_branch(given, out)
            return
        y = given.values @ weight
        self.add_branch(given, y)
        finish(y, bias, out, gate)

    def add_branch(self, given: Input, out: Tensor, gate: Tensor | None = None) -> None:
        """out += low-rank branch, or += gate * it; without another tensor of the output's size where that can be."""
        up = self.stored.up
        if given.low is None or up is None:
            return
        if gate is None and (out.is_contiguous() or in_place(out)):
            rows = out.flatten(0, 1) if out.is_contiguous() else out[0]
            rows.addmm_(given.low.flatten(0, 1), up)
        else:
            add(given.low @ up, out, gate)


def in_place(out: Tensor) -> bool:
    """Whether a library's product can be written into `out` [batch, tokens, channels], a view with strides."""
    return out.shape[0] == 1 and not torch.compiler.is_compiling()


def ending(gate: Tensor | None) -> str:
    return "bias" if gate is None else "gate"


def finish(y: Tensor, bias: Tensor | None, out: Tensor, gate: Tensor | None) -> None:
    """The epilogue of products that come from a library."""
    add(y if bias is None else y.add_(bias), out, gate, replace=True)


def add(y: Tensor, out: Tensor, gate: Tensor | None, replace: bool = False) -> None:
    if gate is not None:
        gate_residual_op(out, gate, y)
    elif replace:
        out.copy_(y)
    else:
        out.add_(y)


def choose_activations(asked: str, weights: set[str], device: torch.device) -> str:
    """What the inputs of quantized linears are turned to.

    "auto" keeps 16 bits on a CPU, as ONNX Runtime does with these bundles; on a GPU that has FP8 tensor cores FP8
    weights get FP8 activations, INT8 weights INT8 ones, and INT4 weights 16-bit ones.

    Raises:
        KontextError: asked for what the weights or the GPU do not have.
    """
    if asked not in ACTIVATIONS:
        raise KontextError(f"activations {asked!r} are not known: choose from {', '.join(ACTIVATIONS)}")
    arch = device_capability(device) if device.type == "cuda" else FP8_CAPABILITY
    old = arch < FP8_CAPABILITY
    if asked == "fp8" and old:
        raise KontextError(f"FP8 activations need compute capability 8.9 (Ada), this GPU has {dotted(arch)}")
    if asked == "fp8" and not weights & {"fp8", "int4"}:
        raise KontextError("FP8 activations go with FP8 or INT4 weights, which this bundle does not have")
    if asked == "int8" and "int8" not in weights:
        raise KontextError("INT8 activations go with INT8 weights, which this bundle does not have")
    if asked != "auto":
        return asked
    if device.type == "cpu":
        return "16-bit"
    if "fp8" in weights and not old:
        return "fp8"
    return "int8" if "int8" in weights else "16-bit"
