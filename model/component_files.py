"""Finds the weight files of a component of a diffusers folder: one file or shards, plain or a variant such as fp16."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import KontextError
from ..regular_files import MAX_JSON_BYTES, read_json

WEIGHT_FILES = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""Stem of a component's weight files; the text encoders' is `model`."""

PLAIN = ""
"""The name of files that are no variant."""

INDEXES = (
    r"\.safetensors\.index\.json",
    r"\.safetensors\.index\.(?P<variant>[\w-]+)\.json",  # diffusers and transformers
    r"\.safetensors\.(?P<variant>[\w-]+)\.index\.json",  # diffusers up to 0.30
    r"\.(?P<variant>[\w-]+)\.safetensors\.index\.json",  # made by hand
)
"""How an index of shards may be named, after the stem."""

SHARD = r"\d{5}-of-\d{5}"

SINGLE = rf"(\.(?!{SHARD})(?P<variant>[\w-]+?)(?<!{SHARD}))?\.safetensors"
"""model.safetensors and model.fp16.safetensors, but not model.fp16-00001-of-00002.safetensors."""

PICKLES = (".bin", ".pt", ".ckpt", ".pth")


def stem_of(component: str) -> str:
    return WEIGHT_FILES.get(component, "model")


def find_variants(folder: Path, stem: str) -> dict[str, Path]:
    """Variant → its file or its shards' index, which comes first if there are both."""
    names = sorted(path.name for path in folder.iterdir())
    found: dict[str, Path] = {}
    for pattern in (SINGLE, *reversed(INDEXES)):
        for name in names:
            if match := re.fullmatch(re.escape(stem) + pattern, name):
                found[match.groupdict().get("variant") or PLAIN] = folder / name
    return found


def choose_variants(base: Path, components: Sequence[str], variant: str | None) -> dict[str, str | None]:
    """Component → the variant to read. None stands for the plain files, or the only ones.

    Raises:
        KontextError: none of the components has the variant that was asked for.
    """
    if variant is None:
        return dict.fromkeys(components)
    held = {component: find_variants(base / component, stem_of(component)) for component in components}
    if not any(variant in found for found in held.values()):
        listed = sorted({name or "plain weights" for found in held.values() for name in found})
        raise KontextError(
            f"{base} has no variant {variant}: it holds {', '.join(listed) or 'no weights'}"
            if components
            else f"--variant {variant} only applies to weights from a diffusers folder"
        )
    for component, found in held.items():
        if variant not in found:
            warnings.warn(
                f"{base / component} has no variant {variant}: its own weights are used", stacklevel=2
            )
    return {component: variant if variant in found else None for component, found in held.items()}


def shard_files(
    folder: Path, stem: str, variant: str | None = None
) -> Iterator[tuple[Path, list[str] | None]]:
    """The weight files of a component, each with the tensors to read from it, or None for all of them.

    Raises:
        KontextError: a file is missing or damaged, or several variants leave no choice.
    """
    found = find_variants(folder, stem)
    if variant is None:
        if PLAIN not in found and len(found) > 1:
            raise KontextError(f"{folder} holds {' and '.join(found)}: choose one with --variant")
        variant = PLAIN if PLAIN in found else next(iter(found), PLAIN)
    if variant not in found:
        raise missing_error(folder, stem)
    if found[variant].suffix == ".json":
        yield from indexed_shards(found[variant])
    else:
        yield found[variant], None


def missing_error(folder: Path, stem: str) -> KontextError:
    files = sorted(folder.iterdir())
    for path in files:
        if path.suffix in PICKLES:
            return KontextError(
                f"{path} is a pickle, which can run code when opened, and is not read: convert it with diffusers or "
                "transformers, save_pretrained(…, safe_serialization=True)"
            )
    for path in files:
        if path.name.startswith(stem) and re.search(rf"-{SHARD}(\.[\w-]+)?\.safetensors$", path.name):
            return KontextError(
                f"{folder / stem}.safetensors.index.json is missing, which says what is in {path.name}"
            )
    return KontextError(f"{folder / stem}.safetensors is missing: the checkpoint is incomplete")


def indexed_shards(index: Path) -> Iterator[tuple[Path, list[str]]]:
    try:
        weight_map = read_json(index, MAX_JSON_BYTES, "a weight index")["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, file in weight_map.items():
            shards.setdefault(os.fsdecode(file), []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KontextError(f"{index} is not a weight index: {type(error).__name__} {error}") from None
    for file, names in sorted(shards.items()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise KontextError(f"{index} names {file!r}, which is not a safetensors file in its folder")
        path = index.parent / file
        if not path.exists():
            raise KontextError(
                f"{path} is missing: {index.name} lists {len(shards)} shards; download it again"
            )
        yield path, names
