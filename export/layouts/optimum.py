"""`--to optimum`: the folder of ONNX graphs that optimum-onnx and Olive write and load, for ONNX Runtime and OpenVINO.

Five graphs with diffusers' inputs and outputs (`graph.pipeline_networks`), each beside its external data. The weights
of the transformer's modulation are in a file of their own, as in a bundle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...model.networks import NETWORKS, linear_weights
from .diffusers import configurations, json_bytes
from .layout import COMPUTE_FORMATS, Layout, PlannedFile
from .portable_tokenizers import CLASSES, portable_tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from ...model.config import KontextConfig
    from ..weights.plan import WeightPlan
    from .source import WeightSource


def plan(source: WeightSource) -> Mapping[str, PlannedFile]:
    from ..graph.pipeline_networks import PIPELINE_GRAPHS, pipeline_constants
    from ..weights.plan import plan_weights
    from ..weights.write import weight_stream

    checkpoint, config = source.checkpoint, source.config
    fields = configurations(source)
    index = fields["model_index.json"] | {name: ["transformers", kind] for name, kind in CLASSES.items()}
    files: dict[str, PlannedFile] = {
        **portable_tokenizers(checkpoint),
        "model_index.json": functools.partial(json_bytes, index),
        "scheduler/scheduler_config.json": functools.partial(
            json_bytes, fields["scheduler/scheduler_config.json"]
        ),
    }
    plans: dict[str, dict[str, WeightPlan]] = {graph: {} for graph in PIPELINE_GRAPHS}
    for graph, networks in PIPELINE_GRAPHS.items():
        for network in networks:
            weights, location = checkpoint.networks[network], data_file(network)
            constants = pipeline_constants(network, config)
            planned = plan_weights(weights, source.recipe, linear_weights(network, config), constants)
            plans[graph][location] = planned
            files[f"{folder_of(graph)}/{location}"] = weight_stream(planned, weights)
    compute = {graph: source.recipe.compute[networks[0]] for graph, networks in PIPELINE_GRAPHS.items()}
    traced = functools.cache(lambda: trace(config, compute))
    for graph, networks in PIPELINE_GRAPHS.items():
        folder = folder_of(graph)
        make = functools.partial(graph_bytes, traced, graph, plans[graph], source.recipe.is_for_gpus)
        files[f"{folder}/model.onnx"] = make
        component = component_fields(fields[f"{NETWORKS[networks[-1]]}/config.json"])
        files[f"{folder}/config.json"] = functools.partial(json_bytes, component)
    return files


def folder_of(graph: str) -> str:
    return graph.removeprefix("pipeline_")


def data_file(network: str) -> str:
    """Of a network's weights, beside the graph: optimum's name for it, which a download from the hub fetches."""
    return "modulation.onnx_data" if network == "modulation" else "model.onnx_data"


def component_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """config.json beside a component's graph: diffusers' or transformers', and what optimum counts a T5's layers
    with."""
    t5 = fields.get("model_type") == "t5"
    return {**fields, **({"num_decoder_layers": fields["num_layers"]} if t5 else {})}


def trace(config: KontextConfig, compute: Mapping[str, str]) -> Mapping[str, ir.Model]:
    """All graphs, unbound. `compute`: graph → what it computes in."""
    from ..graph.workers import Tracers

    with Tracers(list(compute), config, compute) as tracers:
        return {graph: tracers.result(graph) for graph in compute}


def graph_bytes(
    traced: Callable[[], Mapping[str, ir.Model]], graph: str, plans: Mapping[str, WeightPlan], for_gpu: bool
) -> bytes:
    """A graph's file. `plans`: file beside it → its plan."""
    from ..graph.bind_weights import bind, serialize

    model = traced()[graph]
    bind(model, plans, for_gpu=for_gpu)
    return serialize(model)


def usage(output: Path) -> str:
    return (
        f"{output} opens with kontext.integrations.optimum.ORTFluxKontextPipeline.from_pretrained; for text to image, "
        "with optimum's ORTFluxPipeline"
    )


OPTIMUM = Layout(
    name="optimum",
    readers="optimum-onnx, optimum-intel and Olive",
    # NVFP4 has no kernels in ONNX Runtime or OpenVINO.
    formats=(*COMPUTE_FORMATS, "fp8", "int8", "int4", "nf4"),
    components=tuple(dict.fromkeys(NETWORKS.values())),
    names=r"model_index\.json|scheduler/scheduler_config\.json|tokenizer(_2)?/(tokenizer|tokenizer_config)\.json|"
    r"(transformer|vae_encoder|vae_decoder|text_encoder|text_encoder_2)/(config\.json|model\.onnx|model\.onnx_data)|"
    r"transformer/modulation\.onnx_data",
    plan=plan,
    usage=usage,
)
