"""The transformer on Triton kernels, with text and image tokens in one buffer, so that nothing is concatenated.

It computes the same as `model.transformer.Transformer`. Products are written into views of joint buffers, residuals
are added in place, and every input of a linear is prepared in one pass. Its parts (`embed`, `run`, `velocity`) are
separate for `approximations`, which leaves some out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ....compute_capability import dotted
from ....errors import KontextError
from ....kernels.adaln import adaln_op
from ....kernels.attention import attention_op, attention_quantized_op
from ....kernels.autotune import fastest
from ....kernels.launch import FP8_CAPABILITY, MIN_CAPABILITY, device_capability
from ....kernels.norm_rope import HEAD_DIMS, norm_rope_op, split_qkv
from ....kernels.norm_rope_quantize import norm_rope_quantize_op
from ....model.config import TransformerConfig
from ....model.transformer import stream_modulation
from .compile import compiled_block
from .linear import KernelLinear
from .weights import WeightFile

STREAMS = ("img", "txt")

STREAM_LINEARS = {"qkv": "attn.qkv", "proj": "attn.proj", "mlp_in": "mlp.0", "mlp_out": "mlp.2"}
"""Field of `Stream` → its linear's name in the bundle, behind the block's and the stream's."""


@dataclass(frozen=True)
class Stream:
    """The weights of one stream of a double block."""

    qkv: KernelLinear
    query_norm: Tensor
    key_norm: Tensor
    proj: KernelLinear
    mlp_in: KernelLinear
    mlp_out: KernelLinear


@dataclass(frozen=True)
class DoubleBlock:
    image: Stream
    text: Stream


@dataclass(frozen=True)
class SingleBlock:
    linear1: KernelLinear
    query_norm: Tensor
    key_norm: Tensor
    linear2: KernelLinear


Block = DoubleBlock | SingleBlock


@dataclass(frozen=True)
class Weights:
    """All weights of the transformer; the blocks in the order in which they run."""

    image_in: KernelLinear
    text_in: KernelLinear
    double: tuple[DoubleBlock, ...]
    single: tuple[SingleBlock, ...]
    final: KernelLinear


def read_weights(
    file: WeightFile, config: TransformerConfig, activations: str, keep: Callable[[Block], Block]
) -> Weights:
    """Reads the transformer of a bundle.

    Args:
        file: its safetensors file.
        config: its sizes.
        activations: what the inputs of quantized linears are quantized to, see `choose_activations`.
        keep: moves each block to where it is kept, before the next one is read.

    Raises:
        KontextError: a tensor is missing, has another shape, or is not known here.
    """
    hidden, mlp, head_dim = config.hidden_size, config.mlp_size, config.head_dim

    def linear(name: str, rows: int, columns: int) -> KernelLinear:
        return KernelLinear.of(file.linear(name, rows, columns), activations)

    def stream(prefix: str, name: str) -> Stream:
        norms = f"{prefix}.{name}_attn.norm"
        sizes = {
            "qkv": (hidden, 3 * hidden),
            "proj": (hidden, hidden),
            "mlp_in": (hidden, mlp),
            "mlp_out": (mlp, hidden),
        }
        linears = {
            field: linear(f"{prefix}.{name}_{own}", *sizes[field]) for field, own in STREAM_LINEARS.items()
        }
        return Stream(
            **linears,
            query_norm=file.read(f"{norms}.query_norm.scale", (head_dim,)),
            key_norm=file.read(f"{norms}.key_norm.scale", (head_dim,)),
        )

    double: list[DoubleBlock] = []
    for index in range(config.num_double_blocks):
        prefix = f"double_blocks.{index}"
        kept = keep(DoubleBlock(*(stream(prefix, name) for name in STREAMS)))
        assert isinstance(kept, DoubleBlock)
        double.append(kept)
    single: list[SingleBlock] = []
    for index in range(config.num_single_blocks):
        prefix = f"single_blocks.{index}"
        block = SingleBlock(
            linear1=linear(f"{prefix}.linear1", hidden, 3 * hidden + mlp),
            query_norm=file.read(f"{prefix}.norm.query_norm.scale", (head_dim,)),
            key_norm=file.read(f"{prefix}.norm.key_norm.scale", (head_dim,)),
            linear2=linear(f"{prefix}.linear2", hidden + mlp, hidden),
        )
        held = keep(block)
        assert isinstance(held, SingleBlock)
        single.append(held)
    weights = Weights(
        image_in=KernelLinear.of(file.linear("img_in", config.in_channels, hidden), "16-bit"),
        text_in=KernelLinear.of(file.linear("txt_in", config.text_dim, hidden), "16-bit"),
        double=tuple(double),
        single=tuple(single),
        final=KernelLinear.of(file.linear("final_layer.linear", hidden, config.in_channels), "16-bit"),
    )
    file.close()
    return weights


def choose_attention(requested: str, head_dim: int, device: torch.device) -> str:
    """What attention computes in: "auto" is FP8 if the GPU has it, else 16 bits (on a CPU: the model's format).

    Raises:
        KontextError: not possible with heads of this size or on this GPU.
    """
    if head_dim not in HEAD_DIMS:
        raise KontextError(
            f"the kernels take heads of {', '.join(map(str, HEAD_DIMS))} channels, this model's have {head_dim}: "
            "use --backend onnxruntime"
        )
    if device.type != "cuda":
        return "16-bit" if requested == "auto" else requested
    arch = device_capability(device)
    if arch < MIN_CAPABILITY:
        raise KontextError(
            f"the kernels need compute capability 8.0 (Ampere), this GPU has {dotted(arch)}: "
            "use --backend onnxruntime"
        )
    if requested in ("fp8", "int8") and arch < FP8_CAPABILITY:
        raise KontextError(
            f"{requested} attention needs compute capability 8.9 (Ada), this GPU has {dotted(arch)}"
        )
    if requested == "auto":
        return "fp8" if arch >= FP8_CAPABILITY else "16-bit"
    return requested


@dataclass(frozen=True)
class SharedInputs:
    """What all blocks of a step share: RoPE's tables [tokens, head_dim / 2] of all tokens, and the modulations."""

    text_tokens: int
    cos: Tensor
    sin: Tensor
    double_modulation: Tensor
    single_modulation: Tensor


def exchange_reference(kept: Tensor | None, qkv: Tensor, tokens: int) -> None:
    """Stores the reference's keys and values, or restores them if this step did not compute them.

    Args:
        kept: [batch, reference tokens, 2 * hidden]; None: nothing is stored.
        qkv: [batch, all tokens, 3 * hidden], changed in place when restoring. The reference's queries are then
            undefined, and nothing reads them.
        tokens: how many of all tokens were computed.
    """
    if kept is None:
        return
    hidden = qkv.shape[2] // 3
    if tokens < qkv.shape[1]:
        qkv[:, tokens:, hidden:] = kept
    else:
        kept.copy_(qkv[:, qkv.shape[1] - kept.shape[1] :, hidden:])


class Step:
    """Velocity at noisy latents.

    Args:
        config: the transformer's sizes.
        weights: as `read_weights` returns them; `plain` stays them if others, with LoRAs, take their place.
        dtype: of activations that are not quantized.
        attention: "16-bit", "fp8" or "int8".
        blocks: (start, stop) → the blocks in that range, each on the device while its context is entered.
        compiled: whether torch.compile generates the code of each kind of block.
    """

    def __init__(
        self,
        config: TransformerConfig,
        weights: Weights,
        dtype: torch.dtype,
        attention: str,
        blocks: Callable[[int, int], Iterator[AbstractContextManager[Block]]],
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.plain = self.weights = weights
        self.dtype = dtype
        self.attention = attention
        self.blocks = blocks
        # Regional compilation: the weights are arguments, so one compilation serves every block of a kind.
        # Unbound functions: bound methods would be a reference cycle that keeps the weights until it is collected.
        self.run_double: Callable[..., None] = Step.double_block
        self.run_single: Callable[..., None] = Step.single_block
        if compiled:
            self.run_double = compiled_block(Step.double_block)
            self.run_single = compiled_block(Step.single_block)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return self.config.num_double_blocks + self.config.num_single_blocks

    def __call__(
        self,
        target: Tensor,
        reference: Tensor,
        text: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        double_modulation: Tensor,
        single_modulation: Tensor,
        final_modulation: Tensor,
    ) -> Tensor:
        """As `model.transformer.Transformer.forward`; inputs are in `dtype`, RoPE's tables and the output in fp32."""
        x = self.embed(target, reference, text)
        shared = SharedInputs(text.shape[1], rope_cos, rope_sin, double_modulation, single_modulation)
        self.run(x, shared, 0, self.depth)
        return self.velocity(x[:, text.shape[1] : text.shape[1] + target.shape[1]], final_modulation)

    def embed(self, target: Tensor, reference: Tensor, text: Tensor) -> Tensor:
        """The residual stream [batch, tokens, hidden] before the first block: text, target, reference."""
        parts = (
            (text, self.weights.text_in),
            (target, self.weights.image_in),
            (reference, self.weights.image_in),
        )
        tokens = sum(part.shape[1] for part, _ in parts)
        x = target.new_empty((target.shape[0], tokens, self.config.hidden_size))
        start = 0
        for part, linear in parts:
            if part.shape[1]:
                linear.product(linear.prepared(part), x[:, start : start + part.shape[1]])
            start += part.shape[1]
        return x

    def run(
        self,
        x: Tensor,
        shared: SharedInputs,
        start: int,
        stop: int,
        kept: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Runs the blocks from `start` to before `stop`.

        Args:
            x: [batch, tokens, hidden], changed in place; with or without the reference's tokens.
            shared: what all blocks share.
            start, stop: the blocks' numbers.
            kept: for every block the reference's keys and values before their norm, [batch, reference tokens,
                2 * hidden]. They are stored if x has the reference's tokens, else attended to. None: neither.
        """
        double = self.config.num_double_blocks
        for number, held in enumerate(self.blocks(start, stop), start):
            memory = None if kept is None else kept[number]
            with held as block:
                if isinstance(block, DoubleBlock):
                    modulation = shared.double_modulation[:, number]
                    self.run_double(
                        self, block, x, shared.text_tokens, shared.cos, shared.sin, modulation, memory
                    )
                else:
                    modulation = shared.single_modulation[:, number - double]
                    self.run_single(self, block, x, shared.cos, shared.sin, modulation, memory)

    def velocity(self, x: Tensor, final_modulation: Tensor) -> Tensor:
        """The velocity, fp32 [batch, targets, channels], of the residual stream x [batch, targets, hidden]."""
        shift, scale = final_modulation.unbind(1)
        final = adaln_op(x, shift, scale)
        velocity = final.new_empty((*x.shape[:2], self.config.in_channels))
        self.weights.final.product(self.weights.final.prepared(final), velocity)
        return velocity.float()

    def double_block(
        self,
        block: DoubleBlock,
        x: Tensor,
        text_tokens: int,
        cos: Tensor,
        sin: Tensor,
        modulation: Tensor,
        kept: Tensor | None = None,
    ) -> None:
        """Changes x [batch, text + image tokens, hidden] in place; modulation [batch, 2 (image, text), 6, hidden]."""
        batch, tokens, hidden = x.shape
        views = (
            (block.image, slice(text_tokens, tokens), *stream_modulation(modulation[:, 0])),
            (block.text, slice(0, text_tokens), *stream_modulation(modulation[:, 1])),
        )
        qkv = x.new_empty((batch, cos.shape[0], 3 * hidden))
        for stream, part, of_attention, _ in views:
            prepared = stream.qkv.normalized(x[:, part], of_attention.shift, of_attention.scale)
            stream.qkv.product(prepared, qkv[:, part])
        norms = [
            block.text.query_norm,
            block.text.key_norm,
            block.image.query_norm,
            block.image.key_norm,
        ]
        exchange_reference(kept, qkv, tokens)
        attended = self.attend(qkv, cos, sin, norms, text_tokens, tokens)
        for stream, part, of_attention, of_mlp in views:
            residual = x[:, part]
            stream.proj.product(stream.proj.joined(attended[:, part], None), residual, of_attention.gate)
            prepared = stream.mlp_in.normalized(residual, of_mlp.shift, of_mlp.scale)
            scale = stream.mlp_out.stored.input_scale
            if stream.mlp_out.static and stream.mlp_in.activations != "16-bit":
                codes = torch.empty(
                    (*residual.shape[:2], self.config.mlp_size), dtype=prepared.values.dtype, device=x.device
                )
                stream.mlp_in.product(prepared, codes, None, scale)
                middle = stream.mlp_out.coded(codes)
            else:
                wide = x.new_empty((*residual.shape[:2], self.config.mlp_size))
                stream.mlp_in.product(prepared, wide)
                middle = stream.mlp_out.joined(None, wide)
            stream.mlp_out.product(middle, residual, of_mlp.gate)

    def single_block(
        self,
        block: SingleBlock,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        modulation: Tensor,
        kept: Tensor | None = None,
    ) -> None:
        """Changes x [batch, text + image tokens, hidden] in place; modulation [batch, 3, hidden]."""
        batch, tokens, hidden = x.shape
        shift, scale, gate = modulation.unbind(1)
        fused = x.new_empty((batch, cos.shape[0], block.linear1.channels))
        block.linear1.product(block.linear1.normalized(x, shift, scale), fused[:, :tokens])
        norms = [block.query_norm, block.key_norm] * 2
        qkv = fused[..., : 3 * hidden]
        exchange_reference(kept, qkv, tokens)
        attended = self.attend(qkv, cos, sin, norms, 0, tokens)
        block.linear2.product(block.linear2.joined(attended, fused[:, :tokens, 3 * hidden :]), x, gate)

    def attend(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], text_tokens: int, queries: int
    ) -> Tensor:
        """Attention of qkv's [batch, tokens, 3 * hidden] first `queries` tokens to all; [batch, queries, hidden]."""
        heads = self.config.num_heads
        if self.attention != "16-bit":
            q, q_scale, *others = norm_rope_quantize_op(
                qkv, cos, sin, norms, heads, text_tokens, self.attention
            )
            q, q_scale = q[:, :, :queries], q_scale[:, :, :queries].contiguous()
            attended: Tensor = attention_quantized_op(q, q_scale, *others, qkv.dtype)
            return attended
        q, k = norm_rope_op(qkv, cos, sin, norms, heads, text_tokens)
        q = q[:, :, :queries]
        v = split_qkv(qkv, heads)[2]
        if not qkv.is_cuda:
            return attention_op(q, k, v)
        out: list[Tensor] = []

        def triton_kernel() -> None:
            out[:] = [attention_op(q, k, v)]

        def sdpa() -> None:
            product = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            out[:] = [product.transpose(1, 2).flatten(-2)]

        if q.dtype == torch.float32:  # Triton would compute fp32 products in tf32, with errors of 3e-4
            sdpa()
            return out[0]
        key = f"attention {'x'.join(map(str, q.shape))} {k.shape[2]} {q.dtype}"
        fastest(key, {"triton": triton_kernel, "sdpa": sdpa})()
        return out[0]
