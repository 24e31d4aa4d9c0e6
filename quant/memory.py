"""How much memory each stage of an edit needs beside its weights: activations from the real shapes, workspace,
overhead.

Stages run one after another, and each network is dropped after its stage, as `runtime.Pipeline` does with `low_memory`;
so an edit's peak is that of its largest stage. The planner adds the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..model.config import AutoencoderConfig, KontextConfig
from .formats import FORMATS
from .gpus import Target
from .recipe import COMPUTE_BYTES


@dataclass(frozen=True)
class Workload:
    """The edit to plan for: output and each of `references` of `width` x `height` pixels, `batch` pictures at once,
    `steps` of the sampler."""

    width: int
    height: int
    references: int = 1
    batch: int = 1
    steps: int = 28

    def __str__(self) -> str:
        edits = "an edit" if self.batch == 1 else f"{self.batch} edits at once"
        of = {0: "no reference", 1: "one reference"}.get(self.references, f"{self.references} references")
        return f"{edits} at {self.width}x{self.height} with {of}, {self.steps} steps"


@dataclass(frozen=True)
class Demand:
    """Bytes that a stage needs beside its weights.

    `held` are inputs, outputs and whatever waits for a later stage; `activations` the most that is alive at once inside
    the network; `workspace` belongs to the kernels, `overhead` to the process or the driver.
    """

    held: int
    activations: int
    workspace: int
    overhead: int

    @property
    def bytes(self) -> int:
        return self.held + self.activations + self.workspace + self.overhead


@dataclass(frozen=True)
class Executor:
    """The memory that a runtime needs to run the graphs.

    Args:
        overhead: bytes that are always in use.
        workspace: bytes of its libraries.
        slack: share of the activations that the allocator wastes.
        fused_attention: no matrix of attention scores exists.
        host: what waits for later stages is in the same memory.
        spread: the transformer's activations that it holds, over those that are alive.
        planes: tensors of a picture's full size that the autoencoder's blocks hold.
    """

    overhead: int
    workspace: int
    slack: float
    fused_attention: bool
    host: bool
    spread: float
    planes: float


CUDA = Executor(
    # Not measured, any of these. A context with the modules of cuBLAS and cuDNN, for any model.
    overhead=600_000_000,
    # cuBLASLt's recommendation is 32 MiB on Hopper and less before; twice that, for convolutions.
    workspace=64 << 20,
    # Arenas that grow on demand: rounding to 2 MiB, and holes between tensors of different sizes.
    slack=0.1,
    fused_attention=True,
    host=False,
    spread=1.0,
    planes=4.0,
)

CPU = Executor(
    # Interpreter, numpy, ONNX Runtime, tokenizers, Pillow; session state of six graphs comes and goes.
    overhead=85_000_000,
    workspace=16 << 20,
    # These were measured without an arena, on a transformer of 12 blocks and hidden size 1024 with 544 and 1632 tokens
    # (99 and 413 MiB, of which scores 9 and 81 MiB) and an autoencoder of 64 to 256 channels.
    slack=0.0,
    fused_attention=False,
    host=True,
    spread=3.0,
    planes=5.25,
)


def resident_bytes(stored: Iterable[tuple[str, int]], target: Target) -> int:
    """Bytes in memory of weights of (format, bytes on disk) each.

    ONNX Runtime on a CPU packs weights for its kernels one by one and releases the file's pages.
    """
    if not target.is_cpu:
        return sum(size for _, size in stored)
    return int(sum((FORMATS[name].cpu_memory if name in FORMATS else 1.0) * size for name, size in stored))


def executor_of(target: Target) -> Executor:
    return CPU if target.is_cpu else CUDA


def demands(
    config: KontextConfig, compute: dict[str, str], work: Workload, executor: Executor
) -> dict[str, Demand]:
    """Network → what its stage needs beside weights; `compute` as in a recipe."""
    tokens = tokens_of(config, work)
    pixels = work.width * work.height
    live = {
        "text_encoder": work.batch * clip_numbers(config, executor),  # as if all prompts were different
        "text_encoder_2": work.batch * t5_numbers(config, executor),
        "vae_encoder": encoder_numbers(config.autoencoder, pixels, executor),
        "vae_decoder": decoder_numbers(config.autoencoder, pixels, executor),
        "modulation": modulation_numbers(config, work),
        "transformer": work.batch * transformer_numbers(config, tokens, executor),
    }
    held = held_bytes(config, work, tokens, executor)
    return {
        name: Demand(
            held[name],
            int(numbers * COMPUTE_BYTES[compute[name]] * (1 + executor.slack)),
            executor.workspace,
            executor.overhead,
        )
        for name, numbers in live.items()
    }


@dataclass(frozen=True)
class Tokens:
    """Of one edit."""

    target: int
    reference: int
    text: int

    @property
    def image(self) -> int:
        return self.target + self.reference

    @property
    def all(self) -> int:
        return self.image + self.text


def tokens_of(config: KontextConfig, work: Workload) -> Tokens:
    side = 2 * config.autoencoder.downscale
    target = (work.width // side) * (work.height // side)
    return Tokens(target, work.references * target, config.text_encoder_2.max_length)


def transformer_numbers(config: KontextConfig, tokens: Tokens, executor: Executor) -> int:
    """Numbers alive at the worst moment of one row's pass, in a double or in a single block.

    A double block: residuals of both streams, both streams' q, k and v, and the joint ones made of them; or the wide
    hidden layer before and after its GELU. A single block: the residual, the fused linear's output and the parts that
    it is split into. Attention without a fused kernel holds the scores of every head.
    """
    model = config.transformer
    hidden, mlp = model.hidden_size, model.mlp_size
    joined = 7 * tokens.all * hidden
    widened = (tokens.all + tokens.text + tokens.image) * hidden + 2 * tokens.image * mlp
    split = (hidden + 2 * (3 * hidden + mlp)) * tokens.all
    # The inputs, in what the network computes in: tokens, text, modulations.
    inputs = tokens.image * model.in_channels + tokens.text * model.text_dim + modulation_width(config)
    if executor.fused_attention:
        return inputs + max(joined, widened, split)
    # While scores exist fewer other tensors do, but the executor holds some that are no longer alive.
    return inputs + int(executor.spread * max(joined, widened, split)) + model.num_heads * tokens.all**2


def modulation_width(config: KontextConfig) -> int:
    """Numbers of one row's modulations."""
    model = config.transformer
    return (12 * model.num_double_blocks + 3 * model.num_single_blocks + 2) * model.hidden_size


def modulation_numbers(config: KontextConfig, work: Workload) -> int:
    """Every linear's output and the stacks made of them."""
    return 2 * work.steps * work.batch * modulation_width(config)


def t5_numbers(config: KontextConfig, executor: Executor) -> int:
    """One prompt: the residual and the gated layer's three wide tensors, or the scores; the bias table throughout."""
    model = config.text_encoder_2
    length, inner = model.max_length, model.num_heads * model.head_dim
    table = model.num_heads * length**2
    gated = length * (2 * model.hidden_size + 3 * model.intermediate_size)
    attending = length * (2 * model.hidden_size + 4 * inner) + (0 if executor.fused_attention else 2 * table)
    return table + max(gated, attending)


def clip_numbers(config: KontextConfig, executor: Executor) -> int:
    model = config.text_encoder
    scores = 0 if executor.fused_attention else 2 * model.num_heads * model.max_length**2
    return model.max_length * (2 * model.hidden_size + 3 * model.intermediate_size) + scores


def encoder_numbers(model: AutoencoderConfig, pixels: int, executor: Executor) -> int:
    """The first level, at full resolution: a block's input, its norm, the SiLU's two factors; or the attention."""
    first = int(executor.planes * model.block_channels[0] * pixels)
    return max(first, middle_numbers(model, pixels))


def decoder_numbers(model: AutoencoderConfig, pixels: int, executor: Executor) -> int:
    """The last level's first block, which still has the channels of the level before; or the attention."""
    wide = model.block_channels[1] if len(model.block_channels) > 1 else model.block_channels[0]
    return max(int(executor.planes * wide * pixels), middle_numbers(model, pixels))


def middle_numbers(model: AutoencoderConfig, pixels: int) -> int:
    """The autoencoder's attention: one head, wider than fused kernels take, so scores and their softmax exist."""
    positions = pixels // model.downscale**2
    return 2 * positions**2 + 5 * positions * model.block_channels[-1]


def held_bytes(config: KontextConfig, work: Workload, tokens: Tokens, executor: Executor) -> dict[str, int]:
    """Network → bytes of its inputs and outputs, all fp32; on a host also of what waits for later stages."""
    model, rows = config.transformer, work.batch
    picture = 4 * 3 * work.width * work.height
    latents = 4 * tokens.target * model.in_channels
    text = 4 * rows * (tokens.text * model.text_dim + model.pooled_dim)
    references = rows * work.references * latents
    rope = 4 * tokens.all * model.head_dim
    all_modulations = 4 * work.steps * rows * modulation_width(config)
    own = {
        "text_encoder": 4 * rows * model.pooled_dim,
        "text_encoder_2": text,
        "vae_encoder": picture + latents,
        "modulation": all_modulations,
        "transformer": references + text + rope + 4 * rows * modulation_width(config) + 2 * rows * latents,
        "vae_decoder": picture + latents,
    }
    if not executor.host:
        return own
    waiting = {
        "text_encoder": 0,
        "text_encoder_2": 0,
        "vae_encoder": text,
        "modulation": text + references + all_modulations,  # indexed by row, which copies
        "transformer": all_modulations,
        "vae_decoder": all_modulations + text + references,
    }
    return {name: size + waiting[name] for name, size in own.items()}
