"""Copies of a diffusers folder that tests change: edited JSON and tensors, shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kontext.model.networks import NETWORKS

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
CLIP = "text_encoder/model.safetensors"
T5 = "text_encoder_2/model.safetensors"


def edit_json(path: Path, **changes: object) -> None:
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))


def edit_tensors(path: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def shard(
    path: Path, stem: str, index_name: str = "{stem}.safetensors.index.json", shard_name: str = ""
) -> None:
    """Splits a weight file in two with an index, as large checkpoints are. The names are templates."""
    shard_name = shard_name or "{stem}-{number:05}-of-00002.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = shard_name.format(stem=stem, number=number)
        save_file({name: tensors[name] for name in part}, path.parent / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path.parent / index_name.format(stem=stem)).write_text(json.dumps(index))
    path.unlink()


def same(first: dict, second: dict) -> bool:
    return all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(first[name][key], second[name][key]) for key in first[name])
        for name in NETWORKS
    )
