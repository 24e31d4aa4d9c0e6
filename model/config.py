"""The sizes of every network as plain data; the defaults are those of FLUX.1 Kontext [dev]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

TIME_CHANNELS = 256
"""Width of the sinusoidal embedding of the timestep and of the guidance."""

LARGEST_SIZE = 1 << 20
"""Far above any width or vocabulary of this family of models: a larger number means a damaged file."""

MOST_BLOCKS = 256
"""Of one kind in a network. FLUX.1 has 38. A thousand take 10 s to build, before a weight is found missing."""

MOST_RESNETS = 32
"""Of an autoencoder's level; FLUX.1's has 2."""

MOST_LEVELS = 9
"""Of an autoencoder, which halves a picture's sides at each but the last; FLUX.1's has 4."""

MOST_TOKENS = 4096
"""Of a prompt; T5 has 512. Its position bias takes memory in their square."""


@dataclass(frozen=True)
class TransformerConfig:
    """The rectified-flow transformer: double-stream blocks, then single-stream blocks."""

    in_channels: int = 64
    """Channels of one packed image token: 16 latent channels x 2 x 2."""
    hidden_size: int = 3072
    num_heads: int = 24
    num_double_blocks: int = 19
    num_single_blocks: int = 38
    mlp_ratio: float = 4.0
    axes_dim: tuple[int, int, int] = (16, 56, 56)
    """Share of head_dim that encodes (image index, row, column)."""
    theta: float = 10_000.0
    text_dim: int = 4096
    pooled_dim: int = 768
    guidance_embed: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True)
class AutoencoderConfig:
    """The convolutional autoencoder (f8, 16 channels in FLUX)."""

    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_groups: int = 32
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159
    sample_size: int = 1024
    """Side, in pixels, of the square that the model works best at; the preferred sizes are derived from it."""

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.block_channels) - 1)


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's text tower; FLUX uses CLIP-L's pooled output."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_length: int = 77
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_id: int = 2
    """2, in old configurations such as CLIP-L's, means the highest id in the prompt."""


@dataclass(frozen=True)
class T5Config:
    """T5 v1.1's encoder (gated GELU); FLUX uses T5-XXL's."""

    vocab_size: int = 32128
    hidden_size: int = 4096
    head_dim: int = 64
    intermediate_size: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_buckets: int = 32
    relative_max_distance: int = 128
    layer_norm_eps: float = 1e-6
    max_length: int = 512
    """Tokens of a prompt; shorter ones are padded without an attention mask, as in FLUX's training."""

    @property
    def buckets_fit(self) -> bool:
        """Whether distances can be put into the buckets: a quarter of them, at least one, are exact, and the
        logarithmic ones reach further."""
        return 1 <= self.relative_buckets // 4 < self.relative_max_distance


@dataclass(frozen=True)
class SigmasConfig:
    """How a schedule's evenly spaced times become sigmas; the defaults are FLUX's."""

    time_shift: str = "exponential"
    """mu's meaning: "exponential" shifts by e^mu, "linear" by mu, "constant" by `shift` whatever mu is."""
    shift: float = 1.0
    spacing: str = "uniform"
    """How the sigmas between the first and the last are spaced: "uniform", "karras", "exponential" or "beta"."""
    terminal: float | None = None
    """The last sigma before 0; None leaves it where the shift takes it."""


@dataclass(frozen=True)
class SamplerConfig:
    """The rectified-flow sampler. Its time shift is linear in the number of target tokens between the two anchors."""

    steps: int = 28
    guidance: float = 2.5
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    sigmas: SigmasConfig = field(default_factory=SigmasConfig)


@dataclass(frozen=True)
class KontextConfig:
    """A whole model."""

    name: str = "FLUX.1-Kontext-dev"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text_encoder: ClipConfig = field(default_factory=ClipConfig)
    text_encoder_2: T5Config = field(default_factory=T5Config)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)


CONFIG_CLASSES: dict[str, type] = {
    "transformer": TransformerConfig,
    "autoencoder": AutoencoderConfig,
    "text_encoder": ClipConfig,
    "text_encoder_2": T5Config,
}
"""Field of `KontextConfig` → class, for the components that have sizes."""


MOST = {
    "num_double_blocks": MOST_BLOCKS,
    "num_single_blocks": MOST_BLOCKS,
    "num_layers": MOST_BLOCKS,
    "layers_per_block": MOST_RESNETS,
    "max_length": MOST_TOKENS,
}
"""Field with a whole number → its largest value, where that is below `LARGEST_SIZE`."""


def config_from_json(name: str, data: Mapping[str, Any]) -> Any:
    """The config of component `name`, from the JSON of its `dataclasses.asdict`; unknown fields are ignored, such as
    those that a manifest adds.

    Raises:
        ValueError: a field's value can be no model's.
    """
    config_class = CONFIG_CLASSES[name]
    values = {}
    for each in fields(config_class):
        if each.name in data:
            value = data[each.name]
            value = tuple(value) if isinstance(value, list) else value
            if not is_possible(value, getattr(config_class, each.name), MOST.get(each.name, LARGEST_SIZE)):
                raise ValueError(f"{each.name} is {value!r:.40}, which no model has")
            values[each.name] = value
    return config_class(**values)


def is_possible(value: Any, like: Any, most: int) -> bool:
    """Whether a field may have a value: of the type of its default `like`, and from 1 to `most` if it is whole."""
    if isinstance(like, tuple):
        return (
            isinstance(value, tuple)
            and 0 < len(value) <= MOST_LEVELS
            and all(is_possible(v, 1, most) for v in value)
        )
    if isinstance(like, float):
        return type(value) in (int, float) and abs(value) < 1e12
    if type(like) is int:
        return type(value) is int and 1 <= value <= most
    return type(value) is type(like)
