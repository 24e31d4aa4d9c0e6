"""The bundle's manifest: everything a runtime has to know that is not in a graph, a weight or a tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from ...model.checkpoint import Checkpoint
from ...model.networks import NETWORKS
from ...quant.recipe import Layer, Recipe
from ...runtime.bundle import FORMAT, FORMAT_VERSION
from ..graph.interface import OPSET, linear_weights
from .journal import FileEntry
from .preferred_sizes import preferred_sizes
from .tokenizer_files import TokenizerFile

TOOLKIT = {"name": "kontext-export", "version": "0.1.0"}


def build_manifest(
    checkpoint: Checkpoint,
    recipe: Recipe,
    tokenizers: Mapping[str, TokenizerFile],
    files: Mapping[str, FileEntry],
) -> dict[str, object]:
    """The manifest as JSON values; `files` are size and SHA-256 of every file of the bundle but this one."""
    config = checkpoint.config
    autoencoder, sampler = config.autoencoder, config.sampler
    multiple = 2 * autoencoder.downscale  # latents are packed 2x2
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "toolkit": TOOLKIT,
        "model": {
            "name": config.name,
            "parameters": checkpoint.parameters(),
            "transformer": dataclasses.asdict(config.transformer) | {"head_dim": config.transformer.head_dim},
            "autoencoder": dataclasses.asdict(autoencoder) | {"downscale": autoencoder.downscale},
            "text_encoder": dataclasses.asdict(config.text_encoder),
            "text_encoder_2": dataclasses.asdict(config.text_encoder_2),
            "loras": [
                {"file": lora.path.name, "weight": lora.weight, "header_sha256": lora.digest}
                for lora in checkpoint.loras
            ],
        },
        "precision": precision(checkpoint, recipe),
        "sampler": dataclasses.asdict(sampler)
        | {
            "size_multiple": multiple,
            "preferred_sizes": [list(size) for size in preferred_sizes(autoencoder.sample_size, multiple)],
        },
        "graphs": {
            name: {"file": f"{name}.onnx", "weights": f"weights/{name}.safetensors", "opset": OPSET}
            for name in NETWORKS
        },
        "tokenizers": {
            name: {
                "file": f"tokenizers/{name}.json",
                "max_length": tokenizer.max_length,
                "pad_id": tokenizer.pad_id,
                "eos_id": tokenizer.eos_id,
            }
            for name, tokenizer in tokenizers.items()
        },
        "engines": [],
        "kernels": [
            {"architecture": name.split("/")[1], "index": name}
            for name in sorted(files)
            if name.startswith("kernels/") and name.endswith("/kernels.json")
        ],
        "files": {name: dict(entry) for name, entry in files.items()},
    }


def precision(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, object]:
    """`compute` is the transformer's; `networks` has every network's own, `layers` the weights stored
    otherwise."""
    layers: dict[str, dict[str, str | dict[str, object]]] = {}
    for name, network in checkpoint.networks.items():
        linears, compute = linear_weights(name, checkpoint.config), recipe.compute[name]
        for weight, shape in network.shapes.items():
            linear = weight in linears
            layer = recipe.layer_of(name, weight, shape[::-1] if linear else shape, linear)
            if layer != Layer(compute):
                layers.setdefault(name, {})[weight] = layer.as_json()
    return {
        "weights": recipe.weights,
        "compute": recipe.compute["transformer"],
        **({"attention": recipe.attention} if recipe.attention else {}),
        "networks": recipe.compute,
        "layers": layers,
        "recipe": recipe.as_json(),
    }


def manifest_bytes(manifest: Mapping[str, object]) -> bytes:
    return (json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
