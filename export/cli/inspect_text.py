"""Describes a file or folder and the size of its export, from headers alone: `kontext-export inspect`."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...bundle_folder import MANIFEST_NAME, bundle_with
from ...errors import KontextError
from ...model.checkpoint import FLAGS, Checkpoint, NetworkWeights, check_component
from ...model.config import KontextConfig
from ...model.ignored import describe as describe_ignored
from ...model.inferred_config import infer_autoencoder, infer_clip, infer_t5, infer_transformer
from ...model.layouts import TITLES, ComponentWeights, components_of, network_sources
from ...model.lora.names import is_lora
from ...model.lora.read import find_file
from ...model.networks import NETWORKS, linear_weights, weight_shapes
from ...model.stored_weight import StoredWeight
from ...model.weight_files import open_weight_file
from ...quant.formats.fp8 import FP8
from ...quant.formats.int4 import INT4
from ...quant.formats.int8 import INT8
from ...quant.recipe import BIG_MODEL, choose_recipe
from ...runtime.lora_slots import is_ready
from ..weights.plan import plan_weights
from .inspect_bundle import describe_bundle, describe_file_of
from .inspect_lora import describe_fit, describe_kinds, is_lora_folder
from .summary import counted, human, millions

PREVIEWED = (FP8.name, INT8.name, INT4.name)
"""Number formats whose bundle sizes are shown, after that of --bf16."""


def describe(path: Path) -> Iterator[str]:
    """Lines of text about `path`.

    Raises:
        KontextError: it is damaged, or not part of FLUX.1 Kontext.
    """
    bundle = bundle_with(path)
    if bundle is not None and (path.is_dir() or path.name == MANIFEST_NAME):
        yield from describe_bundle(bundle)
    elif bundle is not None:
        yield from describe_file_of(path, bundle)
    elif path.is_dir() and is_lora_folder(path):
        yield from describe_file(find_file(path))
    elif path.is_dir():
        checkpoint = Checkpoint.open(path)
        yield f"{path}: a diffusers folder, {checkpoint.config.name}"
        for component, title in TITLES.items():
            network = next(n for name, n in checkpoint.networks.items() if NETWORKS[name] == component)
            yield from describe_tensors(title, "diffusers", network.files)
            if component in checkpoint.ignored:
                yield f"  {describe_ignored(title, checkpoint.ignored[component])}"
        yield export_sizes(
            list(checkpoint.networks.values()), checkpoint.config, parameters=checkpoint.parameters()
        )
    else:
        yield from describe_file(path)


def describe_file(path: Path) -> Iterator[str]:
    file = open_weight_file(path)
    kind = f"{path}: {file.kind}, {human(path.stat().st_size)}"
    if is_ready(path):
        yield f"{kind}, a LoRA ready for bundles with --lora-slots: kontext-edit BUNDLE --lora FILE[:WEIGHT]"
        return
    if is_lora(file.tensors):
        yield f"{kind}, a LoRA"
        yield from describe_tensors(describe_kinds(file.tensors), "LoRA", file.tensors)
        yield from describe_fit(path)
        return
    parts = components_of(file)
    yield kind
    for component, part in parts.items():
        yield from describe_tensors(TITLES[component], part.layout, part.tensors)
        if part.ignored:
            yield f"  {describe_ignored(TITLES[component], part.ignored)}"
    networks, config = plannable_networks(parts)
    if networks:
        yield export_sizes(networks, config, parameters=BIG_MODEL)
    missing = [component for component in TITLES if component not in parts]
    listed = [f"{TITLES[component]} ({FLAGS.get(component, 'MODEL')})" for component in missing]
    yield f"  it lacks {', '.join([*listed, 'the tokenizers'])}; --base FOLDER can supply all of these"


def describe_tensors(title: str, layout: str, tensors: Mapping[str, StoredWeight]) -> Iterator[str]:
    formats: Counter[str] = Counter()
    for tensor in tensors.values():
        formats[tensor.dtype] += math.prod(tensor.shape)
    total = sum(formats.values())
    shares = ", ".join(
        dtype if len(formats) == 1 else f"{dtype} {count / max(total, 1):.1%}"
        for dtype, count in formats.most_common()
    )
    yield f"  {title}, {layout} names: {counted(len(tensors), 'tensor')}, {millions(total)}, {shares}"


def plannable_networks(parts: Mapping[str, ComponentWeights]) -> tuple[list[NetworkWeights], KontextConfig]:
    """The networks whose sizes follow from the shapes in a file, checked against those shapes; reads no weight."""
    config = KontextConfig()
    if "transformer" in parts:
        config = dataclasses.replace(config, transformer=infer_transformer(parts["transformer"]))
    planned = dict(parts)
    if "vae" in parts:
        try:
            config = dataclasses.replace(config, autoencoder=infer_autoencoder(parts["vae"]))
        except KontextError:
            del planned["vae"]  # not FLUX.1's autoencoder; its --base may describe it
    if "text_encoder" in parts:
        config = dataclasses.replace(config, text_encoder=infer_clip(parts["text_encoder"]))
    if "text_encoder_2" in parts:
        config = dataclasses.replace(config, text_encoder_2=infer_t5(parts["text_encoder_2"]))
    networks: list[NetworkWeights] = []
    for component, part in planned.items():
        mine = {}
        for name in (name for name, owner in NETWORKS.items() if owner == component):
            shapes = weight_shapes(name, config)
            sources = network_sources(name, config, part.layout, part.tensors)
            mine[name] = (shapes, sources)
            networks.append(NetworkWeights(name, shapes, sources, part.tensors))
        check_component(part, mine)
    return networks, config


def export_sizes(networks: Sequence[NetworkWeights], config: KontextConfig, *, parameters: int) -> str:
    """A line with the size of these networks' weights in a bundle, for each flag of `PREVIEWED` alone; what else they
    are stored in follows from the `parameters` of the whole model, as in an export."""
    names = tuple(NETWORKS)
    sizes = []
    for quantization in (None, *PREVIEWED):
        recipe = choose_recipe(names, parameters, None if quantization else "bf16", quantization)
        plans = [
            plan_weights(network, recipe, linear_weights(network.name, config), {}) for network in networks
        ]
        sizes.append(f"{human(sum(plan.size for plan in plans))} with --{quantization or 'bf16'}")
    return f"  becomes {', '.join(sizes)}"
