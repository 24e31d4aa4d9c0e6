"""The reference's networks as their users have them in PyTorch: diffusers' transformer and transformers' text encoders,
with the weights of a reference bundle; and how a pipeline runs them in place of the bundle's graphs.

The transformer's module computes its modulation itself, at every step. So the graph `modulation` is answered by the
numbers of its rows, which the pipeline hands to the transformer step by step, and which find the row's inputs again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....export.graph.interface import constants
from ....model.config import KontextConfig
from ....model.diffusers_folder import save_diffusers
from ....model.layouts import network_sources
from ....model.networks import NETWORKS, linear_weights, weight_shapes
from ....runtime.backends.torch.backend import read_config
from ....runtime.bundle import OUTPUTS, Bundle
from ....temporary_folder import temporary_folder
from .. import bits_per_weight
from ..bits_per_weight import Layers
from ..quiet import quiet
from .answering import Answer, Arrays

COMPONENTS = ("transformer", "text_encoder", "text_encoder_2")
"""Components with linears that bundles quantize."""


class ReferenceModules(nn.Module):
    """diffusers' FluxTransformer2DModel, transformers' CLIPTextModel and T5EncoderModel, in fp32."""

    def __init__(self, config: KontextConfig, components: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.tables = RopeTables()
        for name, module in components.items():
            self.add_module(name, module)
        self.get_submodule("transformer").pos_embed = self.tables
        self.rows: Arrays = {}
        """The inputs of the latest `modulation`."""

    def answers(self) -> dict[str, Answer]:
        return {
            "text_encoder": self.encode_pooled,
            "text_encoder_2": self.encode_text,
            "modulation": self.number_rows,
            "transformer": self.velocity,
        }

    @torch.no_grad()
    def encode_pooled(self, inputs: Arrays) -> dict[str, Any]:
        module = self.get_submodule("text_encoder")
        return {"pooled": module(torch.from_numpy(inputs["input_ids"])).pooler_output.numpy()}

    @torch.no_grad()
    def encode_text(self, inputs: Arrays) -> dict[str, Any]:
        module = self.get_submodule("text_encoder_2")
        return {"text": module(torch.from_numpy(inputs["input_ids"])).last_hidden_state.numpy()}

    def number_rows(self, inputs: Arrays) -> dict[str, Any]:
        """Keeps the inputs; every modulation is filled with its row's number."""
        self.rows = {name: np.array(value) for name, value in inputs.items()}
        sizes, numbers = self.config.transformer, np.arange(len(inputs["timestep"]), dtype=np.float32)
        shapes = {
            "double_modulation": (sizes.num_double_blocks, 2, 6, sizes.hidden_size),
            "single_modulation": (sizes.num_single_blocks, 3, sizes.hidden_size),
            "final_modulation": (2, sizes.hidden_size),
        }
        return {
            name: np.broadcast_to(
                numbers.reshape(-1, *[1] * len(shapes[name])), (len(numbers), *shapes[name])
            )
            for name in OUTPUTS["modulation"]
        }

    @torch.no_grad()
    def velocity(self, inputs: Arrays) -> dict[str, Any]:
        chosen = inputs["final_modulation"][:, 0, 0].astype(np.int64)
        given = {name: torch.from_numpy(values[chosen]) for name, values in self.rows.items()}
        target, reference, text = (torch.from_numpy(inputs[name]) for name in ("target", "reference", "text"))
        self.tables.cos, self.tables.sin = (
            torch.from_numpy(inputs[name]).repeat_interleave(2, dim=-1) for name in ("rope_cos", "rope_sin")
        )
        image = torch.cat((target, reference), dim=1)
        velocity = self.get_submodule("transformer")(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=given["pooled"],
            timestep=given["timestep"],
            guidance=given["guidance"] if self.config.transformer.guidance_embed else None,
            img_ids=image.new_zeros(image.shape[1], 3),  # `tables` answers for them
            txt_ids=text.new_zeros(text.shape[1], 3),
            return_dict=False,
        )[0]
        return {"velocity": velocity[:, : target.shape[1]].float().numpy()}


class RopeTables(nn.Module):
    """In place of diffusers' position embedding: the tables that the pipeline computed, each angle's value twice."""

    cos: Tensor
    sin: Tensor

    def forward(self, _ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


def load_modules(reference: Bundle) -> ReferenceModules:
    """The reference's networks, read by diffusers and transformers from a folder with the bundle's own weights."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    config = read_config(reference)
    classes: dict[str, Any] = dict(
        zip(COMPONENTS, (FluxTransformer2DModel, CLIPTextModel, T5EncoderModel), strict=True)
    )
    with temporary_folder("peer") as temporary, quiet():
        folder = Path(temporary)
        save_diffusers(
            folder, config, {network: read_native(reference, config, network) for network in NETWORKS}
        )
        components = {
            name: kind.from_pretrained(folder / name, torch_dtype=torch.float32).eval().requires_grad_(False)
            for name, kind in classes.items()
        }
    return ReferenceModules(config, components)


def read_native(reference: Bundle, config: KontextConfig, network: str) -> dict[str, Tensor]:
    """Native name → weight of a network, linears' [out, in] as in a checkpoint; copies of a file that may vanish."""
    tensors = bits_per_weight.headers(reference)[network].tensors
    linears = linear_weights(network, config)
    return {
        name: (tensors[name].read().t() if name in linears else tensors[name].read()).float().contiguous()
        for name in weight_shapes(network, config)
        if name not in constants(network, config)
    }


def linears_of(modules: ReferenceModules, layers: Layers) -> dict[str, list[str]]:
    """Graph and weight, as "transformer: double_blocks.0.img_attn.qkv.weight" → paths of the linears that hold it.

    diffusers has a linear for each matrix that our graphs fuse.
    """
    found: dict[str, list[str]] = {}
    for graph, weights in layers.items():
        sources = network_sources(graph, modules.config)
        for weight in weights:
            paths = [f"{NETWORKS[graph]}.{part.removesuffix('.weight')}" for part in sources[weight].parts]
            found[f"{graph}: {weight}"] = [existing(modules, path) for path in paths]
    return found


def existing(modules: nn.Module, path: str) -> str:
    """The path in this version of transformers, of which some wrap CLIP in a `text_model` and some do not."""
    names = dict(modules.named_modules())
    spellings = (path, path.replace("text_encoder.text_model.", "text_encoder."), with_text_model(path))
    return next(spelling for spelling in spellings if spelling in names)


def with_text_model(path: str) -> str:
    return path.replace("text_encoder.", "text_encoder.text_model.", 1)


def all_of(linears: Mapping[str, Iterable[str]]) -> list[str]:
    return [path for paths in linears.values() for path in paths]
