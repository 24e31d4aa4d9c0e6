"""`--to diffusers`: a folder that `FluxKontextPipeline.from_pretrained` opens, in one number format or as bitsandbytes'
NF4.

Weights are in diffusers' and transformers' names, in files of at most `SHARD_BYTES` with an index. Configurations are
written from the model's sizes, tokenizers are copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import KontextError
from ...model.component_files import stem_of
from ...model.config_files import config_files
from ...model.networks import NETWORKS
from ...model.stored_dtypes import TORCH_NAMES
from ...quant.formats.nf4 import NF4
from ...regular_files import MAX_JSON_BYTES, read_regular
from . import bitsandbytes
from .layout import COMPUTE_FORMATS, Layout, PlannedFile
from .safetensors_stream import Made, safetensors_stream

if TYPE_CHECKING:
    from torch import Tensor

    from .source import SourceWeight, WeightSource

SHARD_BYTES = 10_000_000_000
"""Of a file: what diffusers saves by default."""

TOKENIZERS = {"tokenizer": "clip", "tokenizer_2": "t5"}

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "spiece.model",
)  # fmt: skip


def plan(source: WeightSource) -> dict[str, PlannedFile]:
    """Small files first: a model that has no diffusers folder is known before hours of work."""
    from ..bundle.tokenizer_files import read_tokenizers

    files: dict[str, PlannedFile] = dict(tokenizer_files(source))
    read_tokenizers(source.checkpoint)  # refuses damaged ones
    shards: dict[str, PlannedFile] = {}
    configs = configurations(source)
    for component in DIFFUSERS.components:
        weights = list(source.weights(component))
        names = bitsandbytes.quantized(component, weights)
        if names:
            dtype = TORCH_NAMES[source.dtype(component)]
            skipped = bitsandbytes.skipped_modules(component, weights, names)
            note = bitsandbytes.configuration(dtype, skipped)
            configs[f"{component}/config.json"]["quantization_config"] = note
        shards |= component_files(
            component, [planned(source, weight, names) for weight in weights], bool(names)
        )
    for path, fields in configs.items():
        files[path] = partial(json_bytes, fields)
    return files | shards


def configurations(source: WeightSource) -> dict[str, dict[str, Any]]:
    """The folder's JSON files. Raises KontextError for a model that diffusers' classes cannot be told of."""
    dtypes = {name: TORCH_NAMES[source.dtype(name)] for name in NETWORKS}
    try:
        fields = config_files(source.config, dtypes["transformer"])
    except ValueError as error:
        raise KontextError(f"{source.config.name} cannot be a diffusers folder: {error}") from None
    for encoder in ("text_encoder", "text_encoder_2"):
        fields[f"{encoder}/config.json"]["torch_dtype"] = dtypes[encoder]
    return fields


def tokenizer_files(source: WeightSource) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Copies of the tokenizers' files, one by one."""
    for folder, title in TOKENIZERS.items():
        for name in TOKENIZER_FILES:
            path = source.checkpoint.tokenizer_folder(folder) / name
            if path.is_file():
                yield (
                    f"{folder}/{name}",
                    partial(read_regular, path, MAX_JSON_BYTES, f"a file of {title}'s tokenizer"),
                )


def json_bytes(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def planned(source: WeightSource, weight: SourceWeight, quantized: frozenset[str]) -> Made:
    """A weight as diffusers' tensors; in bitsandbytes' NF4 if its module is one of those `quantized`."""
    parts = zip(weight.diffusers_names, weight.diffusers_shapes, strict=True)
    if weight.diffusers_names[0] in quantized:
        dtype = TORCH_NAMES[source.dtype(weight.network)]
        tensors = [each for name, shape in parts for each in bitsandbytes.entries(name, shape, dtype)]
        return Made(tuple(tensors), partial(bitsandbytes.make, source, weight, dtype))
    stored = source.dtype(weight.network)
    return Made(tuple((name, stored, shape) for name, shape in parts), partial(split, source, weight))


def split(source: WeightSource, weight: SourceWeight) -> list[Tensor]:
    return list(weight.split(source.read(weight)).values())


def component_files(component: str, items: Sequence[Made], computes: bool) -> dict[str, PlannedFile]:
    """A component's weights as one file, or as shards with an index."""
    shards: list[list[Made]] = [[]]
    size = 0
    for item in items:
        if shards[-1] and size + item.size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.size
    stem = stem_of(component)
    metadata = {"format": "pt"}
    if len(shards) == 1:
        return {f"{component}/{stem}.safetensors": safetensors_stream(shards[0], metadata, computes)}
    files: dict[str, PlannedFile] = {}
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        files[f"{component}/{name}"] = safetensors_stream(shard, metadata, computes)
        places |= {tensor: name for item in shard for tensor, *_ in item.tensors}
    total = sum(item.size for item in items)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return {**files, f"{component}/{stem}.safetensors.index.json": partial(json_bytes, index)}


def precision(source: WeightSource) -> list[str]:
    lines = [f"{source.recipe.weights} weights"]
    return [*lines, "bitsandbytes and a GPU open it"] if source.recipe.weights == NF4.name else lines


def usage(output: Path) -> str:
    return (
        f'FluxKontextPipeline.from_pretrained("{output}", torch_dtype=…) opens it; without a torch_dtype, diffusers '
        "makes it fp32"
    )


DIFFUSERS = Layout(
    name="diffusers",
    readers="diffusers' FluxKontextPipeline",
    formats=(*COMPUTE_FORMATS, NF4.name),
    components=("transformer", "vae", "text_encoder", "text_encoder_2"),
    names=(
        r"model_index\.json|scheduler/scheduler_config\.json"
        rf"|tokenizer(?:_2)?/(?:{'|'.join(name.replace('.', '[.]') for name in TOKENIZER_FILES)})"
        r"|(?:transformer|vae|text_encoder|text_encoder_2)/(?:config\.json"
        r"|(?:diffusion_pytorch_model|model)(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?)"
    ),
    plan=plan,
    usage=usage,
    precision=precision,
)
