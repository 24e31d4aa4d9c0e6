"""Maps native weights to the tensors of a diffusers folder, in both directions.

A map is plain data: native name → `Source`, which assembles one weight from tensors, or splits it into them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .config import AutoencoderConfig, TransformerConfig

if TYPE_CHECKING:
    from torch import Tensor

Join = Literal["rows", "swap_halves"]


@dataclass(frozen=True)
class Source:
    """The tensors of a file that make up one native weight.

    `parts` are concatenated along rows. `swap_halves` then swaps the two halves of the rows: the final layer's
    modulation is (scale, shift) in diffusers, (shift, scale) in the reference release.
    """

    parts: tuple[str, ...]
    join: Join = "rows"

    def assemble(self, read: Callable[[str], Tensor]) -> Tensor:
        """The native tensor; `read` reads one tensor of the file."""
        import torch

        tensor = (
            read(self.parts[0]) if len(self.parts) == 1 else torch.cat([read(part) for part in self.parts])
        )
        return swap_halves(tensor) if self.join == "swap_halves" else tensor

    def split(self, tensor: Tensor, sizes: list[int]) -> dict[str, Tensor]:
        """The file's tensors, from the native one; `sizes` are the parts' numbers of rows."""
        tensor = swap_halves(tensor) if self.join == "swap_halves" else tensor
        if len(self.parts) == 1:
            return {self.parts[0]: tensor.contiguous()}
        return {name: part.contiguous() for name, part in zip(self.parts, tensor.split(sizes), strict=True)}


def swap_halves(tensor: Tensor) -> Tensor:
    import torch

    first, second = tensor.chunk(2)
    return torch.cat((second, first))


def with_bias(native: str, *parts: str, join: Join = "rows") -> Iterator[tuple[str, Source]]:
    for kind in ("weight", "bias"):
        yield f"{native}.{kind}", Source(tuple(f"{part}.{kind}" for part in parts), join)


def modulation_sources(config: TransformerConfig) -> dict[str, Source]:
    """The map of `Modulation`, whose weights are in diffusers' `transformer/`."""
    sources: dict[str, Source] = {}
    embedders = {"time_in": "timestep", "vector_in": "text"}
    if config.guidance_embed:
        embedders["guidance_in"] = "guidance"
    for native, theirs in embedders.items():
        for layer, number in (("in_layer", 1), ("out_layer", 2)):
            sources.update(
                with_bias(f"{native}.{layer}", f"time_text_embed.{theirs}_embedder.linear_{number}")
            )
    for i in range(config.num_double_blocks):
        sources.update(with_bias(f"double_blocks.{i}.img_mod.lin", f"transformer_blocks.{i}.norm1.linear"))
        sources.update(
            with_bias(f"double_blocks.{i}.txt_mod.lin", f"transformer_blocks.{i}.norm1_context.linear")
        )
    for i in range(config.num_single_blocks):
        sources.update(
            with_bias(f"single_blocks.{i}.modulation.lin", f"single_transformer_blocks.{i}.norm.linear")
        )
    sources.update(with_bias("final_layer.adaLN_modulation.1", "norm_out.linear", join="swap_halves"))
    return sources


def transformer_sources(config: TransformerConfig) -> dict[str, Source]:
    """The map of `Transformer`."""
    sources: dict[str, Source] = {}
    sources.update(with_bias("img_in", "x_embedder"))
    sources.update(with_bias("txt_in", "context_embedder"))
    for i in range(config.num_double_blocks):
        ours, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
        sources.update(with_bias(f"{ours}.img_attn.qkv", *(f"{theirs}.attn.to_{part}" for part in "qkv")))
        sources.update(
            with_bias(f"{ours}.txt_attn.qkv", *(f"{theirs}.attn.add_{part}_proj" for part in "qkv"))
        )
        for norm, key in (("query_norm", "q"), ("key_norm", "k")):
            sources[f"{ours}.img_attn.norm.{norm}.scale"] = Source((f"{theirs}.attn.norm_{key}.weight",))
            sources[f"{ours}.txt_attn.norm.{norm}.scale"] = Source(
                (f"{theirs}.attn.norm_added_{key}.weight",)
            )
        sources.update(with_bias(f"{ours}.img_attn.proj", f"{theirs}.attn.to_out.0"))
        sources.update(with_bias(f"{ours}.txt_attn.proj", f"{theirs}.attn.to_add_out"))
        for stream, mlp in (("img", "ff"), ("txt", "ff_context")):
            sources.update(with_bias(f"{ours}.{stream}_mlp.0", f"{theirs}.{mlp}.net.0.proj"))
            sources.update(with_bias(f"{ours}.{stream}_mlp.2", f"{theirs}.{mlp}.net.2"))
    for i in range(config.num_single_blocks):
        ours, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        fused = (*(f"{theirs}.attn.to_{part}" for part in "qkv"), f"{theirs}.proj_mlp")
        sources.update(with_bias(f"{ours}.linear1", *fused))
        sources.update(with_bias(f"{ours}.linear2", f"{theirs}.proj_out"))
        for norm, key in (("query_norm", "q"), ("key_norm", "k")):
            sources[f"{ours}.norm.{norm}.scale"] = Source((f"{theirs}.attn.norm_{key}.weight",))
    sources.update(with_bias("final_layer.linear", "proj_out"))
    return sources


def resnet_sources(native: str, theirs: str, shortcut: bool) -> Iterator[tuple[str, Source]]:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield from with_bias(f"{native}.{part}", f"{theirs}.{part}")
    if shortcut:
        yield from with_bias(f"{native}.nin_shortcut", f"{theirs}.conv_shortcut")


def half_sources(half: str, config: AutoencoderConfig) -> dict[str, Source]:
    """The map of one half of the autoencoder, "encoder" or "decoder"; native names without the half's prefix."""
    channels, last = config.block_channels, len(config.block_channels) - 1
    encoder = half == "encoder"
    sources: dict[str, Source] = {}
    for part in ("conv_in", "conv_out"):
        sources.update(with_bias(part, f"{half}.{part}"))
    sources.update(with_bias("norm_out", f"{half}.conv_norm_out"))
    for i in (0, 1):
        sources.update(resnet_sources(f"mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}", shortcut=False))
    attention = f"{half}.mid_block.attentions.0"
    for ours, name in (
        ("norm", "group_norm"),
        ("q", "to_q"),
        ("k", "to_k"),
        ("v", "to_v"),
        ("proj_out", "to_out.0"),
    ):
        sources.update(with_bias(f"mid.attn_1.{ours}", f"{attention}.{name}"))
    for i in range(last + 1):
        if encoder:
            ours, theirs, before = f"down.{i}", f"encoder.down_blocks.{i}", channels[max(i - 1, 0)]
        # The reference numbers the decoder's levels from the full resolution, diffusers in the order they run.
        else:
            ours, theirs, before = f"up.{i}", f"decoder.up_blocks.{last - i}", channels[min(i + 1, last)]
        for j in range(config.layers_per_block + (0 if encoder else 1)):
            shortcut = j == 0 and before != channels[i]
            sources.update(resnet_sources(f"{ours}.block.{j}", f"{theirs}.resnets.{j}", shortcut))
        if encoder and i < last:
            sources.update(with_bias(f"{ours}.downsample.conv", f"{theirs}.downsamplers.0.conv"))
        elif not encoder and i > 0:
            sources.update(with_bias(f"{ours}.upsample.conv", f"{theirs}.upsamplers.0.conv"))
    return sources


def to_diffusers(
    state: Mapping[str, Tensor], sources: Mapping[str, Source], config: TransformerConfig
) -> dict[str, Tensor]:
    """A state dict in diffusers' names. Fused rows are split into q, k, v, of `hidden_size` rows each, and the MLP."""
    result: dict[str, Tensor] = {}
    sizes = [config.hidden_size] * 3 + [config.mlp_size]
    for name, source in sources.items():
        result.update(source.split(state[name], sizes[: len(source.parts)]))
    return result
