"""One step of the transformer with random weights: eager as in diffusers, compiled, in flux-fast's recipe, and on our
kernels; and the error of our step in each format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.launch import device_capability
from ...kernels.numeric import quantize_rows
from ...kernels.nvfp4 import NVFP4_CAPABILITY
from ...model.config import TransformerConfig
from ...model.transformer import Transformer
from ...quant.formats.fp8 import FP8
from ...quant.formats.int4 import INT4
from ...quant.formats.nvfp4 import NVFP4
from ...runtime.backends.torch.linear import KernelLinear
from ...runtime.backends.torch.memory import resident
from ...runtime.backends.torch.transformer import DoubleBlock, SingleBlock, Step, Stream, Weights
from ...runtime.backends.torch.weights import StoredLinear
from .timing import DeviceTimer

BOUNDS = {"bf16": 0.03, "fp8": 0.15, "int4": 0.35, "int4 fp8": 0.4, "nvfp4": 0.5}
"""Largest ‖ours − fp32‖ / ‖fp32‖ of a two-block network's velocity that passes. INT4 rounds random weights to the
nearest, an error of 10 % in each linear."""

FULL = TransformerConfig()
SMALL = TransformerConfig(
    hidden_size=128, num_heads=2, num_double_blocks=1, num_single_blocks=1, mlp_ratio=2.0, axes_dim=(8, 28, 28),
    text_dim=64,
)  # fmt: skip


def random_inputs(
    config: TransformerConfig,
    text: int,
    target: int,
    reference: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Random inputs of a step with `text`, `target` and `reference` tokens, by name of the network's argument."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    angles = torch.rand(text + target + reference, config.head_dim // 2, device=device) * 6.28
    hidden = config.hidden_size
    return {
        "target": random(1, target, config.in_channels),
        "reference": random(1, reference, config.in_channels),
        "text": random(1, text, config.text_dim),
        "rope_cos": angles.cos(),
        "rope_sin": angles.sin(),
        "double_modulation": random(1, config.num_double_blocks, 2, 6, hidden) / 4,
        "single_modulation": random(1, config.num_single_blocks, 3, hidden) / 4,
        "final_modulation": random(1, 2, hidden) / 4,
    }


def random_network(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """The network in PyTorch, with random weights of order 1 / sqrt(in)."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith("norm.scale"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.02)
    return model.requires_grad_(False).eval()


def stored(linear: nn.Linear, format: str) -> StoredLinear:
    """A linear as a bundle stores it."""
    weight, bias = linear.weight.detach().t(), linear.bias
    if format == "fp8":
        values, scale = FP8.quantize(weight, weight.dtype)
        return StoredLinear(values.contiguous(), bias, scale, format=format)
    if format == "int4" and INT4.fits(tuple(weight.shape)):
        packed, scales = round_int4(weight)
        return StoredLinear(packed, bias, scales, format=format)
    if format == "nvfp4" and NVFP4.fits(tuple(weight.shape)):
        packed, *levels = NVFP4.quantize(weight, weight.dtype)
        table, scale, _ = NVFP4.kernel_operands(*levels)
        # Of a normalized input; blocks with larger numbers saturate.
        reach = torch.full((1,), 8 / (6 * 448), device=weight.device)
        return StoredLinear(packed.contiguous(), bias, scale.contiguous(), reach, format=format, table=table)
    return StoredLinear(weight.contiguous(), bias)


def round_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """INT4 with each group's scale from its largest weight: the scale search of `Int4.quantize` takes minutes on a
    GPU."""
    groups = weight.float().unflatten(0, (-1, INT4.group))
    scale = (groups.abs().amax(1) / 7).clamp(min=1e-12)
    units = (groups / scale[:, None]).flatten(0, 1)
    return INT4.pack(units).contiguous(), scale.to(weight.dtype).contiguous()


SIDES = {
    "bf16": ("bf16", "16-bit", "16-bit"),
    "fp8": ("fp8", "fp8", "fp8"),
    "int4": ("int4", "16-bit", "16-bit"),
    "int4 fp8": ("int4", "fp8", "fp8"),
    "nvfp4": ("nvfp4", "nvfp4", "fp8"),
}
"""Our sides: name → formats of the weights, of the linears' inputs and of the attention's operands."""


def sides(device: torch.device) -> list[str]:
    """Names of the sides that a device computes; a CPU runs the reference implementations of all."""
    blackwell = device.type != "cuda" or device_capability(device) >= NVFP4_CAPABILITY
    return [side for side in SIDES if blackwell or side != "nvfp4"]


def on_kernels(model: Transformer, format: str, activations: str, attention: str, free: bool = False) -> Step:
    """Our step with the weights of `model`; `free` drops each linear's weight once it is converted."""
    config = model.config

    def kernel(linear: nn.Linear) -> KernelLinear:
        result = KernelLinear.of(stored(linear, format), activations)
        if free:
            linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        return result

    double, single = [], []
    blocks: Any = model.double_blocks  # the type checker does not know submodules' attributes
    for block in blocks:
        streams = [
            Stream(
                kernel(attn.qkv),
                attn.norm.query_norm.scale,
                attn.norm.key_norm.scale,
                kernel(attn.proj),
                kernel(mlp[0]),
                kernel(mlp[2]),
            )
            for attn, mlp in ((block.img_attn, block.img_mlp), (block.txt_attn, block.txt_mlp))
        ]
        double.append(DoubleBlock(*streams))
    blocks = model.single_blocks
    for block in blocks:
        norm = block.norm
        single.append(
            SingleBlock(
                kernel(block.linear1), norm.query_norm.scale, norm.key_norm.scale, kernel(block.linear2)
            )
        )
    wide = [
        KernelLinear.of(stored(linear, "bf16"), "16-bit")
        for linear in (model.img_in, model.txt_in, model.final_layer.linear)
    ]
    weights = Weights(wide[0], wide[1], tuple(double), tuple(single), wide[2])
    return Step(config, weights, model.img_in.weight.dtype, attention, resident([*double, *single]))


def weight_bytes(step: Step) -> int:
    """Bytes of the linears of all blocks, scales and biases included."""

    def size(part: Any) -> int:
        if isinstance(part, Tensor):
            return part.nbytes
        if isinstance(part, (tuple, list)):
            return sum(map(size, part))
        if dataclasses.is_dataclass(part):
            return sum(size(getattr(part, field.name)) for field in dataclasses.fields(part))
        return 0

    return size(step.weights)


class LibraryFp8(nn.Module):
    """flux-fast's linear: FP8 weights scaled by row, activations quantized by token on the fly, torch._scaled_mm."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.values, scale = quantize_rows(linear.weight.detach().float(), "fp8")
        self.scale = scale[None]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        codes, scale = quantize_rows(rows.float(), "fp8")
        y: Tensor = torch._scaled_mm(
            codes,
            self.values.t(),
            scale_a=scale[:, None],
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return y.view(*x.shape[:-1], -1)


def to_library_fp8(model: Transformer) -> None:
    """Replaces every linear of the blocks in place."""
    for blocks in (model.double_blocks, model.single_blocks):
        for path, module in list(blocks.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = path.rpartition(".")
                setattr(blocks.get_submodule(parent), child, LibraryFp8(module))


def compile_blocks(model: Transformer) -> None:
    """Regional compilation: one block of each kind is compiled, and all blocks of that kind share the code."""
    for blocks in (model.double_blocks, model.single_blocks):
        for block in blocks:
            block.compile(fullgraph=True)


def shallow_errors(
    device: torch.device, dtype: torch.dtype, config: TransformerConfig
) -> dict[str, dict[str, Any]]:
    """Our step in each format against the network in fp32, with one block of each kind."""
    shallow = dataclasses.replace(config, num_double_blocks=1, num_single_blocks=1)
    model = random_network(shallow, device, torch.float32)
    given = random_inputs(shallow, 32, 96, 64, device, torch.float32)
    wanted = model(**given).double()
    model = model.to(dtype)
    low = {name: value if name.startswith("rope") else value.to(dtype) for name, value in given.items()}
    found = {}
    for side in sides(device):
        bound = BOUNDS[side]
        out = on_kernels(model, *SIDES[side])(**low).double()
        measured = float((out - wanted).norm() / wanted.norm())
        found[f"step {side}"] = {"error": measured, "bound": bound, "passed": measured <= bound}
    return found


@contextmanager
def peak(device: torch.device) -> Iterator[Callable[[], float]]:
    """Yields a function that returns the peak of allocated GiB since the context was entered."""
    if device.type != "cuda":
        yield lambda: 0.0
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) / 2**30


def measure_step(
    step: Callable[..., Tensor], given: dict[str, Tensor], timer: DeviceTimer, replay: bool
) -> dict[str, float]:
    """Median milliseconds of a step, replayed from a CUDA graph or launched by Python, and its peak memory in GiB."""
    with torch.inference_mode(), peak(timer.device) as gib:
        run = lambda: step(**given)  # noqa: E731
        time = timer.replayed(run) if replay else timer.milliseconds(run, max(3, timer.repeats // 2))
        return {"ms": time, "peak_gib": gib()}
