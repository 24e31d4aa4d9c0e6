"""A FLUX.1 Kontext checkpoint on disk, in any of the supported layouts: opened without reading weights.

checkpoint = Checkpoint.open(folder)
checkpoint.networks["transformer"].read("img_in.weight")
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle_folder import refuse_bundle
from ..errors import KontextError
from .component_files import choose_variants
from .config import KontextConfig, SamplerConfig
from .diffusers_config import (
    COMPONENTS,
    T5_TOKENS,
    check_fit,
    read_autoencoder,
    read_clip,
    read_config,
    read_index,
    read_sampler,
    read_t5,
    read_transformer,
)
from .diffusers_folder import open_component
from .diffusers_format import Source
from .finite import is_finite
from .inferred_config import infer_autoencoder, infer_clip, infer_t5, infer_transformer, with_positions
from .layouts import TITLES, ComponentWeights, components_of, network_sources
from .lora.read import LoraFile, read_loras
from .lora.update import Update
from .networks import NETWORKS, weight_shapes
from .source_names import seen, source_name
from .stored_formats.module import INSTEAD
from .stored_weight import StoredWeight
from .tokenizer_config import check_tokenizer_config, prompt_tokens
from .weight_files import open_weight_file

if TYPE_CHECKING:
    from torch import Tensor

ALL = tuple(dict.fromkeys(NETWORKS.values()))
"""All components."""

NO_WEIGHTS = ("I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E8M0")
"""Number formats that no weight may have: integers, and powers of two."""

FLAGS = {"vae": "--vae", "text_encoder": "--clip", "text_encoder_2": "--t5"}
"""Component → the command line's flag for its file."""

FIELDS = {"vae": "autoencoder"}
"""Component → field of `KontextConfig`, where they differ."""

INFER: dict[str, Callable[[ComponentWeights], Any]] = {
    "transformer": infer_transformer,
    "vae": infer_autoencoder,
    "text_encoder": infer_clip,
    "text_encoder_2": infer_t5,
}
"""Component → how its sizes follow from its tensors' shapes."""


@dataclass(frozen=True)
class Origin:
    """Where to find a model's files.

    Args:
        model: a diffusers folder, or a file that holds the transformer and possibly other components.
        files: component → file; takes precedence over `model` and `base`.
        base: a diffusers folder, complete or not, for everything that `model` and `files` lack: weights,
            configurations,
            tokenizers. Default: the folder of the file `model`, if it is a diffusers folder.
        name: of the model. Default: the name in the folder or of the file.
        loras: LoRA files and their weights, fused in this order.
        partial_loras: accept LoRAs of which only some tensors match the model.
        steps: the sampler's default. Otherwise that of the last few-step LoRA, or the model's own.
        variant: of the weights in a diffusers folder, such as fp16. Default: the plain ones, or the only ones.
        max_sequence_length: tokens of a prompt for T5, 2 to 512, as in diffusers. Default: the tokenizer's limit.
        title: what a bundle records for `model`. Default: its file's or folder's name, or its hub id.
    """

    model: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    base: Path | None = None
    name: str | None = None
    loras: Sequence[tuple[Path, float]] = ()
    partial_loras: bool = False
    steps: int | None = None
    variant: str | None = None
    max_sequence_length: int | None = None
    title: str | None = None

    def record(self) -> dict[str, str]:
        """The manifest's `source`: `model`, and only if they were given `base`, `variant` and components."""
        named = {"base": self.base, **self.files}
        result = {"model": seen(self.title or source_name(self.model))}
        result |= {part: source_name(path) for part, path in named.items() if path is not None}
        return result | ({"variant": seen(self.variant)} if self.variant is not None else {})


@dataclass(frozen=True)
class NetworkWeights:
    """The weights of one network in their files: names and shapes are checked, no tensor is in memory."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    sources: dict[str, Source]
    files: Mapping[str, StoredWeight]
    updates: Mapping[str, Sequence[Update]] = field(default_factory=dict)

    def read(self, weight: str) -> Tensor:
        """One weight by its native name: in the file's number format, or in fp32 if LoRAs are fused into it.

        Raises:
            KontextError: it cannot be read, or holds NaN or infinity.
        """
        tensor = self.sources[weight].assemble(lambda part: widen_fp8(self.files[part].read()))
        if not is_finite(tensor):
            part = self.files[self.sources[weight].parts[0]]
            raise KontextError(
                f"{part.path}: weight {part.name} holds NaN or infinity: the checkpoint is damaged"
            )
        tensor = tensor.reshape(self.shapes[weight])
        if weight in self.updates:
            tensor = tensor.float()
            for update in self.updates[weight]:
                update.apply_to(tensor)
        return tensor

    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def widen_fp8(tensor: Tensor) -> Tensor:
    """FP8 as bf16, which represents all of its values; other formats unchanged."""
    import torch

    return tensor.to(torch.bfloat16) if tensor.element_size() == 1 else tensor


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    `networks` are those of the components that were found; `files` are the weight files that it is read from, with the
    SHA-256 of their headers; `tokenizers` is the folder with `tokenizer/` and `tokenizer_2/`, None if there is none and
    none was needed; `ignored` are components' tensors that no network uses, counted by kind.
    """

    config: KontextConfig
    networks: dict[str, NetworkWeights]
    files: dict[Path, str]
    tokenizers: Path | None
    loras: Sequence[LoraFile] = ()
    steps_source: str = "the model"
    """Where the default steps come from."""
    ignored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    """What a bundle records of where it comes from."""

    @classmethod
    def open(cls, origin: Origin | Path, needed: Collection[str] = ALL) -> Checkpoint:
        """Opens a checkpoint, and checks everything that needs no weights: configs, shards, names, shapes, formats.

        Args:
            origin: where its files are.
            needed: components that a single file may not lack; the tokenizers are needed with the text encoders. LoRAs
                match nothing of a component that is not there.

        Raises:
            KontextError: the first thing that is wrong.
        """
        origin = Origin(origin) if isinstance(origin, Path) else origin
        refuse_bundles(origin)
        base = base_folder(origin)
        components, files = find_components(origin, base, needed)
        config = with_prompt_length(find_config(origin, components, base), origin.max_sequence_length)
        if base is not None:
            for tokenizer in ("tokenizer", "tokenizer_2"):
                check_tokenizer_config(base / tokenizer / "tokenizer_config.json")
        shapes = {
            name: weight_shapes(name, config) for name, owner in NETWORKS.items() if owner in components
        }
        sources = {}
        for component, weights in components.items():
            mine = [name for name, owner in NETWORKS.items() if owner == component]
            for name in mine:
                sources[name] = network_sources(name, config, weights.layout, weights.tensors)
            check_component(weights, {name: (shapes[name], sources[name]) for name in mine})
        updates, loras = read_loras(origin.loras, shapes, config, origin.partial_loras)
        files.update({lora.path: lora.digest for lora in loras})
        config, steps_source = with_steps(config, origin.steps, loras)
        networks = {
            name: NetworkWeights(
                name, shapes[name], sources[name], components[component].tensors, updates.get(name, {})
            )
            for name, component in NETWORKS.items()
            if component in components
        }
        if base is None and any(component.startswith("text_encoder") for component in needed):
            raise KontextError(f"{origin.model} has no tokenizers: {advice(['tokenizers'])}")
        ignored = {component: weights.ignored for component, weights in components.items() if weights.ignored}
        return cls(config, networks, files, base, loras, steps_source, ignored, origin.record())

    def parameters(self) -> int:
        return sum(network.parameters() for network in self.networks.values())

    def tokenizer_folder(self, name: str) -> Path:
        """The folder of the tokenizer `name`, "tokenizer" or "tokenizer_2"; it may not exist."""
        if self.tokenizers is None:
            raise ValueError("this checkpoint was opened without its tokenizers")
        return self.tokenizers / name

    def key(self) -> dict[str, object]:
        """What two exports of the same model agree in, as JSON; weights count by their files' size, date and
        header."""
        return {
            "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
            "loras": [[str(lora.path.absolute()), lora.weight] for lora in self.loras],
            "sources": self.identity(),
        }

    def identity(self) -> dict[str, list[int | str]]:
        """Identifies the weight files: path → size, modification time, SHA-256 of the header."""
        result: dict[str, list[int | str]] = {}
        for path, digest in self.files.items():
            status = path.stat()
            result[str(path.absolute())] = [status.st_size, status.st_mtime_ns, digest]
        return result


def refuse_bundles(origin: Origin) -> None:
    """Raises KontextError if any part of a model is a bundle: its weights are quantized, or transposed for graphs."""
    refuse_bundle(origin.model)
    if origin.base is not None:
        refuse_bundle(origin.base, "--base")
    for component, path in origin.files.items():
        refuse_bundle(path, FLAGS[component])
    for path, _ in origin.loras:
        refuse_bundle(path, "--lora")


def with_prompt_length(config: KontextConfig, tokens: int | None) -> KontextConfig:
    """The config for T5 prompts of `tokens` tokens. T5's position bias has no limit; diffusers' pipelines have."""
    if tokens is None:
        return config
    if not 2 <= tokens <= T5_TOKENS:
        raise KontextError(f"a prompt may have 2 to {T5_TOKENS} tokens, not {tokens}")
    return dataclasses.replace(
        config, text_encoder_2=dataclasses.replace(config.text_encoder_2, max_length=tokens)
    )


def with_steps(
    config: KontextConfig, steps: int | None, loras: Sequence[LoraFile]
) -> tuple[KontextConfig, str]:
    """The config with its default steps and where they come from: --steps, the last few-step LoRA or the model."""
    source = "--steps"
    if steps is None:
        few, lora = next(((lora.steps, lora) for lora in reversed(loras) if lora.steps), (None, None))
        if few is None or lora is None:
            return config, Checkpoint.steps_source
        steps, source = few.count, f"{lora.name}: {few.source}"
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, steps=steps)), source


def base_folder(origin: Origin) -> Path | None:
    """The diffusers folder for everything that `origin.model` lacks, or None."""
    if origin.model.is_dir():
        if origin.base is not None:
            raise KontextError(f"{origin.model} is a complete folder: --base only applies to a single file")
        read_index(origin.model)
        return origin.model
    if origin.base is not None:
        if not origin.base.is_dir():
            raise KontextError(f"{origin.base} is not a folder: --base takes a diffusers folder")
        return origin.base
    # Black Forest Labs' repository has single files and the diffusers folders side by side.
    beside = origin.model.absolute().parent
    return beside if (beside / "model_index.json").exists() else None


def find_components(
    origin: Origin, base: Path | None, needed: Collection[str] = ALL
) -> tuple[dict[str, ComponentWeights], dict[Path, str]]:
    """Every component's tensors, and the digests of all headers read. A component comes from its own file, the model or
    the base, in this order. Raises KontextError if one of those `needed` is in none of them."""
    components: dict[str, ComponentWeights] = {}
    digests: dict[Path, str] = {}
    for component, path in origin.files.items():
        file = open_weight_file(path)
        held = components_of(file)
        if component not in held:
            listed = " and ".join(TITLES[other] for other in held)
            raise KontextError(f"{path} holds {listed}: {FLAGS[component]} takes {TITLES[component]}")
        components[component] = held[component]
        digests[path] = file.digest
    if not origin.model.is_dir():
        file = open_weight_file(origin.model)
        held = components_of(file)
        if "transformer" not in held:
            listed = " and ".join(TITLES[component] for component in held)
            raise KontextError(
                f"{origin.model} holds {listed}, not the transformer: name the file of the transformer"
            )
        components = {**held, **components}
        digests[origin.model] = file.digest
    missing = [component for component in dict.fromkeys(NETWORKS.values()) if component not in components]
    if base is not None:
        folders = [component for component in missing if (base / component).is_dir()]
        for component, variant in choose_variants(base, folders, origin.variant).items():
            components[component], read = open_component(base, component, variant)
            digests.update(read)
            missing.remove(component)
    missing = [component for component in missing if component in needed]
    if missing:
        listed = ", ".join(TITLES[component] for component in missing)
        raise KontextError(f"{origin.model} lacks {listed}: {advice(missing)}")
    return components, digests


def advice(missing: Sequence[str]) -> str:
    options = [f"{FLAGS[component]} FILE" for component in missing if component in FLAGS]
    files = f"name {', '.join(options)}, or " if options else ""
    return f"{files}add --base FOLDER, a diffusers folder of FLUX.1 Kontext"


def find_config(
    origin: Origin, components: Mapping[str, ComponentWeights], base: Path | None
) -> KontextConfig:
    """The sizes of every component: from its config.json, or if it has none, inferred from its tensors' shapes.
    Components from files of their own may lack a config.json beside a folder, too."""
    folder = origin.model.is_dir()
    sized = origin.files if folder else components
    parts = {component: components[component] for component in INFER if component in sized}
    given = {
        FIELDS.get(component, component): component_config(component, weights, base)
        for component, weights in parts.items()
    }
    if folder:
        return read_config(
            origin.model, given if origin.name is None else {**given, "name": seen(origin.name)}
        )
    scheduler = None if base is None else base / "scheduler"
    sampler = read_sampler(scheduler) if scheduler and scheduler.is_dir() else SamplerConfig()
    config = KontextConfig(name=seen(origin.name or origin.model.stem), sampler=sampler, **given)
    if len(parts) == len(INFER):
        check_fit(str(origin.model), config)
    return config


def component_config(component: str, weights: ComponentWeights, base: Path | None) -> Any:
    """The sizes of one component: from its config.json in `base`, or if that has none, inferred. CLIP's positions are
    always those of `weights`, T5's tokens those of the tokenizer in `base`."""
    if base is None:
        return INFER[component](weights)
    folder, tokenizer = base / component, base / "tokenizer_2"
    if not (folder / "config.json").exists():
        inferred = INFER[component](weights)
        if component != "text_encoder_2":
            return inferred
        tokens = prompt_tokens(tokenizer / "tokenizer_config.json", inferred.max_length)
        return dataclasses.replace(inferred, max_length=tokens)
    if component == "transformer":
        return read_transformer(folder)
    if component == "vae":
        return read_autoencoder(folder)
    if component == "text_encoder":
        return with_positions(read_clip(folder), weights)
    return read_t5(folder, tokenizer)


def check_component(
    weights: ComponentWeights, networks: Mapping[str, tuple[Mapping[str, tuple[int, ...]], dict[str, Source]]]
) -> None:
    """Raises KontextError unless a component holds exactly the tensors that its networks need, in the right shapes and
    float formats."""
    wanted: set[str] = set()
    found = weights.tensors
    for shapes, sources in networks.values():
        for weight, source in sources.items():
            wanted.update(source.parts)
            for name in source.parts:
                if name not in found:
                    raise KontextError(
                        f"{weights.where} lacks tensor {name}: it is incomplete, or its config.json is another model's"
                    )
                if found[name].dtype in NO_WEIGHTS:
                    raise KontextError(
                        f"{found[name].path}: tensor {name} is {found[name].dtype}, expected a float format; if it is "
                        f"quantized, {INSTEAD}"
                    )
            expected, given = shapes[weight], [found[name].shape for name in source.parts]
            # Rows add up, all other dimensions are equal. The reference autoencoder's attention has 1x1 convolutions,
            # which are linears here.
            joined = (sum(shape[0] for shape in given), *given[0][1:]) if all(given) else ()
            same = joined == expected or (weights.component == "vae" and joined == (*expected, 1, 1))
            if not same or any(shape[1:] != given[0][1:] for shape in given):
                listed = ", ".join(
                    f"{name} {list(shape)}" for name, shape in zip(source.parts, given, strict=True)
                )
                raise KontextError(
                    f"{weights.where}: {listed} does not fit the model's sizes, expected {list(expected)}"
                )
    for name in found:
        if name not in wanted:
            owner = COMPONENTS[weights.component][1]
            raise KontextError(f"{found[name].path}: tensor {name} does not belong to {owner}")


def load_state(model: Origin | Path) -> dict[str, dict[str, Tensor]]:
    """All weights of a checkpoint in memory: network → native name → tensor. For small models, training and tests."""
    checkpoint = Checkpoint.open(model)
    return {
        name: {weight: network.read(weight) for weight in network.shapes}
        for name, network in checkpoint.networks.items()
    }
