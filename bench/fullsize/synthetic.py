"""A synthetic checkpoint: a diffusers folder with the shapes and names of a configuration, FLUX.1 Kontext's by default.

Weights repeat one tile of bf16 noise; each tensor starts at another place in it and is scaled by a power of two that
keeps the network's outputs of order 1. That is deterministic, and as fast as the disk.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import KontextError
from ...export.cli.source_flags import EMBEDDED
from ...model.component_files import stem_of
from ...model.config import KontextConfig
from ...model.config_files import config_files
from ...model.layouts import network_sources
from ...model.networks import NETWORKS, weight_shapes
from ...safetensors_header import make_header

SHARD_BYTES = 10_000_000_000
"""Largest shard, as in checkpoints on the Hugging Face hub."""

TILE = 1 << 24
"""Values in the tile of noise."""

FULL = KontextConfig(name="FLUX.1-Kontext-synthetic")
"""FLUX.1 Kontext's sizes."""

SPARE_BYTES = 2_000_000_000
"""Free disk space to leave."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="to create")
    parser.add_argument("--hollow", action="store_true", help="weights of zeros, which take no disk space")


def run(arguments: argparse.Namespace) -> None:
    if arguments.folder.exists():
        raise KontextError(f"{arguments.folder} already exists: name a new folder")
    size = checkpoint_bytes(FULL)
    arguments.folder.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.hollow:
        check_disk_space(arguments.folder.parent, size)
    with tqdm(total=size, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        write_checkpoint(arguments.folder, FULL, bar.update, arguments.hollow)


def component_shapes(config: KontextConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component → name in its files → shape."""
    result: dict[str, dict[str, tuple[int, ...]]] = {}
    hidden, mlp = config.transformer.hidden_size, config.transformer.mlp_size
    for network, component in NETWORKS.items():
        shapes = weight_shapes(network, config)
        for native, source in network_sources(network, config).items():
            rows = [hidden, hidden, hidden, mlp] if len(source.parts) > 1 else [shapes[native][0]]
            for part, count in zip(source.parts, rows, strict=False):
                result.setdefault(component, {})[part] = (count, *shapes[native][1:])
    return result


def checkpoint_bytes(config: KontextConfig) -> int:
    """Bytes of the checkpoint's weights."""
    return sum(
        2 * math.prod(shape) for shapes in component_shapes(config).values() for shape in shapes.values()
    )


def check_disk_space(folder: Path, needed: int) -> None:
    """Raises KontextError if the disk of `folder` has no space for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise KontextError(
            f"{folder} has {free / 1e9:.1f} GB free and this needs {(needed + SPARE_BYTES) / 1e9:.1f} GB: "
            "choose a folder on a larger disk, or a smaller model"
        )


def write_checkpoint(
    folder: Path, config: KontextConfig, advance: Callable[[int], object], hollow: bool = False
) -> None:
    """Writes the checkpoint; its tokenizers are the embedded model's, which fit any larger vocabulary.

    Args:
        folder: is created.
        config: the networks' sizes.
        advance: is called with the number of bytes written since the last call.
        hollow: make files of zeros that take no disk space.
    """
    for path, fields in config_files(config, "bfloat16").items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(EMBEDDED / name, folder / name, dirs_exist_ok=True)
    noise = Noise()
    for component, shapes in component_shapes(config).items():
        stem = stem_of(component)
        shards = list(sharded(shapes))
        index: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            file = f"{stem}{suffix}.safetensors"
            write_file(
                folder / component / file, {name: shapes[name] for name in names}, noise, advance, hollow
            )
            index.update(dict.fromkeys(names, file))
        if len(shards) > 1:
            text = json.dumps({"metadata": {}, "weight_map": index}, indent=2)
            (folder / component / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def sharded(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """The names of the tensors in each shard."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        count = 2 * math.prod(shape)
        if names and size + count > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += count
    yield names


def write_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    noise: Noise,
    advance: Callable[[int], object],
    hollow: bool = False,
) -> None:
    header, _ = make_header((name, "BF16", shape) for name, shape in shapes.items())
    with path.open("wb") as file:
        file.write(header)
        if hollow:
            size = sum(2 * math.prod(shape) for shape in shapes.values())
            file.truncate(file.tell() + size)
            advance(size)
            return
        for name, shape in shapes.items():
            for piece in noise.pieces(name, shape):
                file.write(piece.view(torch.uint8).numpy().data)
                advance(2 * piece.numel())


class Noise:
    """A tile of noise, and copies of it scaled by powers of two."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tile = torch.randn(TILE, generator=generator)
        self.scaled: dict[int, Tensor] = {}
        self.start = 0

    def pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """A tensor's values in bf16, flat, in pieces."""
        count = math.prod(shape)
        if len(shape) == 1 and not name.endswith("bias"):  # a norm's scale
            yield torch.ones(count, dtype=torch.bfloat16)
            return
        fan_in = count // shape[0] if len(shape) > 1 else 1024
        tile = self.at_scale(-round(math.log2(fan_in) / 2))
        self.start = (self.start + 7919) % TILE  # a prime: no two tensors start at the same place
        position = self.start
        while count:
            piece = tile[position : position + count]
            yield piece
            count -= piece.numel()
            position = 0

    def at_scale(self, exponent: int) -> Tensor:
        if exponent not in self.scaled:
            self.scaled[exponent] = (self.tile * 2.0**exponent).bfloat16()
        return self.scaled[exponent]
