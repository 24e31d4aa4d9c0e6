"""What the graph of each network takes, returns and stores: a bundle's contract with every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...model.config import KontextConfig

if TYPE_CHECKING:
    from torch import Tensor

OPSET = 23
"""Attention, RMSNormalization and RotaryEmbedding are single operators from 23 on; ONNX Runtime breaks silently from 26
on."""


@dataclass(frozen=True)
class Interface:
    """A graph's inputs and outputs: name → shape, in which a string is a dimension that varies, such as "batch".

    "8*latent_height" is 8 times dimension "latent_height"; "text_tokens + target_tokens" is a sum. Inputs and outputs
    are fp32; with `integers`, inputs are int64. `wide` inputs are not cast to the format that the network computes in.
    `labels` are dimensions that the finished graph names otherwise.
    """

    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    wide: tuple[str, ...] = ()
    integers: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


def network_interface(network: str, config: KontextConfig) -> Interface:
    """The interface of the graph of `network`, a key of `NETWORKS`."""
    transformer, latents = config.transformer, config.autoencoder.latent_channels
    hidden, half_head = transformer.hidden_size, transformer.head_dim // 2
    text = (config.text_encoder_2.max_length, transformer.text_dim)
    modulations: dict[str, tuple[int, ...]] = {
        "double_modulation": (transformer.num_double_blocks, 2, 6, hidden),
        "single_modulation": (transformer.num_single_blocks, 3, hidden),
        "final_modulation": (2, hidden),
    }
    tokens = "text_tokens + target_tokens + reference_tokens"
    if network == "text_encoder":
        ids = {"input_ids": ("batch", config.text_encoder.max_length)}
        return Interface(ids, {"pooled": ("batch", config.text_encoder.hidden_size)}, integers=True)
    if network == "text_encoder_2":
        return Interface({"input_ids": ("batch", text[0])}, {"text": ("batch", *text)}, integers=True)
    if network in ("vae_encoder", "vae_decoder"):
        scale = config.autoencoder.downscale
        image = ("batch", 3, f"{scale}*latent_height", f"{scale}*latent_width")
        latent = ("batch", latents, "latent_height", "latent_width")
        if network == "vae_encoder":
            return Interface({"image": image}, {"latents": latent})
        return Interface({"latents": latent}, {"image": image})
    if network == "modulation":
        return Interface(
            {"timestep": ("rows",), "guidance": ("rows",), "pooled": ("rows", transformer.pooled_dim)},
            {key: ("rows", *shape) for key, shape in modulations.items()},
            wide=("timestep", "guidance"),
        )
    if network == "transformer":
        channels = transformer.in_channels
        return Interface(
            {
                "target": ("batch", "target_tokens", channels),
                "reference": ("batch", "reference_tokens", channels),
                "text": ("batch", *text),
                "rope_cos": (tokens, half_head),
                "rope_sin": (tokens, half_head),
                **{key: ("batch", *shape) for key, shape in modulations.items()},
            },
            {"velocity": ("batch", "target_tokens", channels)},
            wide=("rope_cos", "rope_sin"),
        )
    raise ValueError(f"no network is called {network!r}")


BUCKETS = "buckets"
"""A table in the weights' file of T5, which is no weight."""


def constants(network: str, config: KontextConfig) -> dict[str, Tensor]:
    """Tables that a graph needs and no checkpoint holds: T5's bucket of every pair of positions."""
    if network != "text_encoder_2":
        return {}
    from ...model.text_encoders import relative_buckets

    t5 = config.text_encoder_2
    return {BUCKETS: relative_buckets(t5.max_length, t5.relative_buckets, t5.relative_max_distance)}
