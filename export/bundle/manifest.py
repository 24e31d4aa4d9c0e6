"""manifest.json: everything a runtime has to know that is not in a graph, a weight or a tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

from ...bundle_folder import FORMAT
from ...installation import DISTRIBUTION, VERSION
from ...model.checkpoint import Checkpoint
from ...model.config import SamplerConfig, SigmasConfig, TransformerConfig
from ...model.networks import NETWORKS, linear_weights
from ...quant.recipe import Layer, Recipe
from ...runtime.bundle import FORMAT_VERSION, LORA_VERSION
from ..graph.interface import OPSET
from .journal import FinishedFile
from .preferred_sizes import preferred_sizes
from .tokenizer_files import TokenizerFile

TOOLKIT = {"name": DISTRIBUTION, "version": VERSION}


def weights_file(network: str) -> str:
    """A network's weights, relative to the bundle's folder."""
    return f"weights/{network}.safetensors"


def graph_file(network: str) -> str:
    """A network's graph, relative to the bundle's folder."""
    return f"{network}.onnx"


def tokenizer_path(name: str) -> str:
    """A tokenizer, relative to the bundle's folder."""
    return f"tokenizers/{name}.json"


def build_manifest(
    checkpoint: Checkpoint,
    recipe: Recipe,
    tokenizers: Mapping[str, TokenizerFile],
    files: Mapping[str, FinishedFile],
    calibration: Mapping[str, object] | None = None,
    plan: Mapping[str, object] | None = None,
    links: Mapping[str, object] | None = None,
    preview: Callable[[], Mapping[str, object]] | None = None,
    reference_method: str | None = None,
    lora_slots: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The manifest as JSON values.

    Args:
        checkpoint: the model.
        recipe: the number formats.
        tokenizers: by name.
        files: every file of the bundle but the manifest.
        calibration: what weights were calibrated on.
        plan: the memory plan that `recipe` comes from.
        links: the user's files that graphs take weights from.
        preview: gives the colours of previews, which takes seconds: called only where a manifest is made.
        reference_method: how edits place several references; None: `default_reference_method`.
        lora_slots: what LoRAs an edit may bring; None: none.
    """
    config = checkpoint.config
    autoencoder, sampler = config.autoencoder, config.sampler
    multiple = 2 * autoencoder.downscale  # latents are packed 2x2
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION if lora_slots is None else LORA_VERSION,
        "toolkit": TOOLKIT,
        "source": dict(checkpoint.source),
        "model": {
            "name": config.name,
            "parameters": checkpoint.parameters(),
            "transformer": dataclasses.asdict(config.transformer) | {"head_dim": config.transformer.head_dim},
            "autoencoder": dataclasses.asdict(autoencoder) | {"downscale": autoencoder.downscale},
            "text_encoder": dataclasses.asdict(config.text_encoder),
            "text_encoder_2": dataclasses.asdict(config.text_encoder_2),
            "loras": [
                {"file": lora.name, "weight": lora.weight, "header_sha256": lora.digest}
                for lora in checkpoint.loras
            ],
        },
        "precision": precision(checkpoint, recipe),
        "sampler": sampler_entry(sampler)
        | {
            "size_multiple": multiple,
            "preferred_sizes": [list(size) for size in preferred_sizes(autoencoder.sample_size, multiple)],
            "reference_method": reference_method or default_reference_method(config.transformer),
        },
        "graphs": {
            name: {"file": graph_file(name), "weights": weights_file(name), "opset": OPSET}
            for name in NETWORKS
        },
        "tokenizers": {
            name: {
                "file": tokenizer_path(name),
                "max_length": tokenizer.max_length,
                "pad_id": tokenizer.pad_id,
                "eos_id": tokenizer.eos_id,
            }
            for name, tokenizer in tokenizers.items()
        },
        "engines": [],
        "kernels": kernel_entries(files),
        "files": {name: dict(entry) for name, entry in files.items()},
        **({"calibration": calibration} if calibration else {}),
        **({"plan": plan} if plan is not None else {}),
        **({"links": links} if links else {}),
        **({"preview": preview()} if preview is not None else {}),
        **({"lora_slots": lora_slots} if lora_slots else {}),
    }


def kernel_entries(files: Mapping[str, object]) -> list[dict[str, str]]:
    """The manifest's `kernels`, from the names of a bundle's files."""
    return [
        {"architecture": name.split("/")[1], "index": name}
        for name in sorted(files)
        if name.startswith("kernels/") and name.endswith("/kernels.json")
    ]


def sampler_entry(config: SamplerConfig) -> dict[str, object]:
    """The sampler's settings; those of its sigmas only if they are not FLUX's."""
    entry = dataclasses.asdict(config)
    if config.sigmas == SigmasConfig():
        del entry["sigmas"]
    return entry


def default_reference_method(transformer: TransformerConfig) -> str:
    """What suits a model: offset for FLUX.1 Kontext's shape, whose released weights follow it, index for any other."""
    flux = TransformerConfig()
    shape = ("hidden_size", "num_double_blocks", "num_single_blocks")
    same = all(getattr(transformer, name) == getattr(flux, name) for name in shape)
    return "offset" if same else "index"


def precision(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, object]:
    """`compute` is the transformer's number format; `networks` has every network's, `layers` the format of each weight
    that is not stored in its network's."""
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
