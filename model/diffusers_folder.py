"""Reads the weights of a diffusers folder, shard by shard, and writes such folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import KontextError
from .component_files import shard_files, stem_of
from .config import KontextConfig
from .config_files import config_files
from .diffusers_format import to_diffusers
from .layouts import ComponentWeights, network_sources
from .networks import NETWORKS, weight_shapes
from .stored_weight import StoredWeight
from .weight_files import decoded, open_raw_file

if TYPE_CHECKING:
    from torch import Tensor


def open_component(
    folder: Path, component: str, variant: str | None = None
) -> tuple[ComponentWeights, dict[Path, str]]:
    """A component of a diffusers folder, and the digests of all headers read. `variant` as in `shard_files`.

    Raises:
        KontextError: a file is missing or damaged.
    """
    tensors: dict[str, StoredWeight] = {}
    notes: dict[str, Mapping[str, Any]] = {}
    digests: dict[Path, str] = {}
    for path, names in shard_files(folder / component, stem_of(component), variant):
        file = open_raw_file(path)
        digests[path] = file.digest
        notes.update(file.notes)
        for name in names if names is not None else file.tensors:
            if name not in file.tensors:
                raise KontextError(f"{path} lacks tensor {name}, which its index lists")
            tensors[name] = file.tensors[name]
    # A weight and its scales may be in different shards.
    weights = decoded(folder / component, tensors, notes)
    return ComponentWeights.sort(component, "diffusers", str(folder / component), weights), digests


def save_diffusers(folder: Path, config: KontextConfig, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes a folder for diffusers' `FluxKontextPipeline.from_pretrained`, except its two tokenizers.

    Args:
        folder: created if needed; existing files are replaced.
        config: the model's sizes.
        weights: network (a key of `NETWORKS`) → native name → tensor, written in the tensor's number format.

    Raises:
        ValueError: a weight is missing, unknown, or has another shape than in `config`.
    """
    from safetensors.torch import save_file

    components: dict[str, dict[str, Tensor]] = {}
    for name, component in NETWORKS.items():
        shapes = weight_shapes(name, config)
        given = {key: tuple(tensor.shape) for key, tensor in weights[name].items()}
        if given != shapes:
            different = sorted(key for key in {*given, *shapes} if given.get(key) != shapes.get(key))
            raise ValueError(
                f"{name}: these weights are missing, unknown or have a wrong shape: {', '.join(different)}"
            )
        sources = network_sources(name, config)
        components.setdefault(component, {}).update(to_diffusers(weights[name], sources, config.transformer))
    dtype = str(weights["transformer"]["img_in.weight"].dtype).removeprefix("torch.")
    for path, fields in config_files(config, dtype).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for component, tensors in components.items():
        stem = stem_of(component)
        ordered = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
        save_file(ordered, folder / component / f"{stem}.safetensors", metadata={"format": "pt"})
