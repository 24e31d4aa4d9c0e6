"""A diffusers folder of FLUX.1 Kontext: opened with no weight in memory, read one by one; and written.

checkpoint = Checkpoint.open(folder); checkpoint.networks["transformer"].read("img_in.weight")
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import KontextError
from .autoencoder import Decoder, Encoder
from .config import KontextConfig
from .diffusers_config import COMPONENTS, config_files, read_config
from .diffusers_format import Source, half_sources, modulation_sources, to_diffusers, transformer_sources
from .safetensors_file import TensorInfo, read_header
from .text_encoders import ClipTextEncoder, T5Encoder
from .transformer import Modulation, Transformer

NETWORKS = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
    "modulation": "transformer",
    "transformer": "transformer",
}
"""Our six networks, in the order an edit runs them → the folder that holds their weights."""

WEIGHT_FILES = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""Stem of a component's weight files; the text encoders' is `model`."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats that a diffusers folder may hold its weights in."""

IGNORED = (
    "position_ids",
    "encoder.embed_tokens.weight",
    "shared.weight",
    "logit_scale",
    "text_projection.weight",
)
"""Endings of tensors that may be there and that no network of ours needs (copies, or other heads of the
encoder)."""


def build_network(name: str, config: KontextConfig) -> nn.Module:
    """One of `NETWORKS`, with the weights that PyTorch starts it with; build it on `meta` for its shapes
    alone."""
    if name == "transformer":
        return Transformer(config.transformer)
    if name == "modulation":
        return Modulation(config.transformer)
    if name == "vae_encoder":
        return Encoder(config.autoencoder)
    if name == "vae_decoder":
        return Decoder(config.autoencoder)
    if name == "text_encoder":
        return ClipTextEncoder(config.text_encoder)
    if name == "text_encoder_2":
        return T5Encoder(config.text_encoder_2)
    raise ValueError(f"no network is called {name!r}")


def weight_shapes(name: str, config: KontextConfig) -> dict[str, tuple[int, ...]]:
    """Native name → shape of every weight of a network, in the network's own order."""
    with torch.device("meta"):
        state = build_network(name, config).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def network_sources(
    name: str, config: KontextConfig, available: Mapping[str, object] | None = None
) -> dict[str, Source]:
    """Native name → tensors of the file. `available` decides between the spellings that text encoders come
    in."""
    if name == "transformer":
        return transformer_sources(config.transformer)
    if name == "modulation":
        return modulation_sources(config.transformer)
    if name in ("vae_encoder", "vae_decoder"):
        return half_sources(name.removeprefix("vae_"), config.autoencoder)
    sources = {key: Source((key,)) for key in weight_shapes(name, config)}
    if available is None:
        return sources
    if name == "text_encoder" and not any(key.startswith("text_model.") for key in available):
        return {key: Source((key.removeprefix("text_model."),)) for key in sources}
    if name == "text_encoder_2" and "shared.weight" not in available:
        sources["shared.weight"] = Source(("encoder.embed_tokens.weight",))
    return sources


@dataclass(frozen=True)
class NetworkWeights:
    """The weights of one network in their files: names and shapes known and checked, no tensor in memory."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    sources: dict[str, Source]
    files: dict[str, TensorInfo]

    def read(self, weight: str) -> Tensor:
        """One weight by its native name, in the file's number format.

        Raises:
            KontextError: it cannot be read, or holds NaN or infinity.
        """
        tensor = self.sources[weight].assemble(lambda part: self.files[part].read())
        # One reduction instead of a mask of the tensor's size: NaN and infinity both survive max(|x|).
        if tensor.numel() and not torch.isfinite(tensor.abs().max()):
            part = self.files[self.sources[weight].parts[0]]
            raise KontextError(
                f"{part.path}: weight {part.name} holds NaN or infinity: the checkpoint is damaged"
            )
        return tensor

    def parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


@dataclass(frozen=True)
class Checkpoint:
    """A whole model on disk. `files` are the weight files that it is read from, with the digests of their
    headers."""

    folder: Path
    config: KontextConfig
    networks: dict[str, NetworkWeights]
    files: dict[Path, str]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Checks everything that can be checked without reading weights: configs, shards, names, shapes,
        formats.

        Raises:
            KontextError: the one thing that is wrong, in the user's words.
        """
        config = read_config(folder)
        files: dict[Path, str] = {}
        tensors: dict[str, dict[str, TensorInfo]] = {}
        for component in dict.fromkeys(NETWORKS.values()):
            tensors[component] = {}
            for path, names in shard_files(folder / component, WEIGHT_FILES.get(component, "model")):
                header = read_header(path)
                files[path] = header.digest
                for name in names if names is not None else header.tensors:
                    if name not in header.tensors:
                        raise KontextError(f"{path} lacks tensor {name}, which its index promises")
                    tensors[component][name] = header.tensors[name]
        networks = {}
        for name, component in NETWORKS.items():
            shapes = weight_shapes(name, config)
            sources = network_sources(name, config, tensors[component])
            networks[name] = NetworkWeights(name, shapes, sources, tensors[component])
        for component, found in tensors.items():
            check_tensors(
                folder / component, found, [networks[n] for n, c in NETWORKS.items() if c == component]
            )
        return cls(folder, config, networks, files)

    def parameters(self) -> int:
        return sum(network.parameters() for network in self.networks.values())


def shard_files(folder: Path, stem: str) -> Iterator[tuple[Path, list[str] | None]]:
    """The weight files of a component and, where an index lists them, the tensors to take from each."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.exists():
        yield from indexed_shards(index)
    elif single.exists() or single.is_symlink():
        yield single, None
    else:
        variants = sorted(folder.glob(f"{stem}.*.safetensors"))
        if len(variants) == 1:  # a half-precision download: diffusion_pytorch_model.fp16.safetensors
            yield variants[0], None
            return
        for pattern in ("*.bin", "*.pt", "*.ckpt", "*.pth"):
            for pickle in sorted(folder.glob(pattern)):
                raise KontextError(
                    f"{pickle} is a pickle, which can run code when opened, and is not read: convert it with "
                    "diffusers or transformers, save_pretrained(…, safe_serialization=True)"
                )
        raise KontextError(f"{single} is missing: the checkpoint is incomplete")


def indexed_shards(index: Path) -> Iterator[tuple[Path, list[str]]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, file in weight_map.items():
            shards.setdefault(os.fsdecode(file), []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise KontextError(f"{index} is not a weight index: {type(fault).__name__} {fault}") from None
    for file, names in sorted(shards.items()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise KontextError(f"{index} names {file!r}, which is no safetensors file of its folder")
        path = index.parent / file
        if not path.exists():
            raise KontextError(
                f"{path} is missing: {len(shards)} shards are listed in {index.name}, download it again"
            )
        yield path, names


def check_tensors(folder: Path, found: Mapping[str, TensorInfo], networks: list[NetworkWeights]) -> None:
    """Every tensor that the networks need is there in the right shape and a float format, and nothing else
    is."""
    wanted: set[str] = set()
    for network in networks:
        for weight, source in network.sources.items():
            wanted.update(source.parts)
            for part in source.parts:
                if part not in found:
                    raise KontextError(
                        f"{folder} lacks tensor {part}: it is incomplete, or config.json is not its own"
                    )
                if found[part].dtype not in FLOATS:
                    raise KontextError(
                        f"{found[part].path}: tensor {part} is {found[part].dtype}, expected a float format"
                    )
            expected, shapes = network.shapes[weight], [found[part].shape for part in source.parts]
            # Rows add up, every other dimension is shared.
            joined = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if all(shapes) else ()
            if joined != expected or any(shape[1:] != shapes[0][1:] for shape in shapes):
                listed = ", ".join(
                    f"{part} {list(shape)}" for part, shape in zip(source.parts, shapes, strict=True)
                )
                raise KontextError(
                    f"{folder}: {listed} does not fit config.json, which asks for {list(expected)}"
                )
    for name in found:
        if name not in wanted and not name.endswith(IGNORED):
            raise KontextError(f"{found[name].path}: tensor {name} is none of {COMPONENTS[folder.name][1]}'s")


def load_state(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Every weight of a checkpoint in memory: network → native name → tensor. For small models, tests and
    training."""
    checkpoint = Checkpoint.open(folder)
    return {
        name: {weight: network.read(weight) for weight in network.shapes}
        for name, network in checkpoint.networks.items()
    }


def save_diffusers(folder: Path, config: KontextConfig, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes a folder that diffusers' `FluxKontextPipeline.from_pretrained` loads, all but its two
    tokenizers.

    Args:
        folder: made if needed; files of the same names are replaced.
        config: the model's sizes.
        weights: network (`NETWORKS`) → native name → tensor, written in the tensor's own number format.

    Raises:
        ValueError: a weight is missing, unknown or of another shape than `config` says.
    """
    components: dict[str, dict[str, Tensor]] = {}
    for name, component in NETWORKS.items():
        shapes = weight_shapes(name, config)
        given = {key: tuple(tensor.shape) for key, tensor in weights[name].items()}
        if given != shapes:
            different = sorted(key for key in {*given, *shapes} if given.get(key) != shapes.get(key))
            raise ValueError(
                f"{name}: these weights are missing, unknown or misshapen: {', '.join(different)}"
            )
        sources = network_sources(name, config)
        components.setdefault(component, {}).update(to_diffusers(weights[name], sources, config.transformer))
    dtype = str(weights["transformer"]["img_in.weight"].dtype).removeprefix("torch.")
    for path, fields in config_files(config, dtype).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for component, tensors in components.items():
        stem = WEIGHT_FILES.get(component, "model")
        ordered = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
        save_file(ordered, folder / component / f"{stem}.safetensors", metadata={"format": "pt"})
