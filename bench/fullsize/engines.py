"""TensorRT engine builds at FLUX.1 Kontext's full size, without a checkpoint or a GPU.

Graphs are traced without weights, and engines take their weights as inputs. Time and peak memory are of one compiler
process per engine.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ...errors import KontextError
from ...export.bundle.manifest import weights_file
from ...export.bundle.preferred_sizes import preferred_sizes
from ...export.engines.build import parse_targets
from ...export.engines.process import BuilderProcess
from ...export.engines.profiles import profiles
from ...export.graph import bind_weights, interface, trace
from ...export.progress import Progress
from ...export.weights.plan import plan_weights
from ...export.weights.write import raw_bytes
from ...model.checkpoint import NetworkWeights
from ...model.config import KontextConfig
from ...model.dtypes import TORCH_DTYPES
from ...model.networks import NETWORKS, linear_weights, weight_shapes
from ...quant.options import usual_rank
from ...quant.recipe import choose_recipe
from ...runtime.bundle import (
    AutoencoderEntry,
    Bundle,
    GraphEntry,
    TokenizerEntry,
    TransformerEntry,
)
from ...runtime.sampler_entry import SamplerEntry
from ...temporary_folder import temporary_folder
from ..flags import parse_names
from ..machine import describe_machine, machine_line
from ..report import Table, finish, write_result
from .benchmark import full_size, gigabytes

FULL_PARAMETERS = 12_000_000_000
"""For the recipe, which leaves a small model's T5 in fp32 but not a large one's."""


INPUTS = "-inputs"
"""Ends formats of an export that is calibrated."""

SCALE = 2.0**-6
"""Of all weights and inputs: a normal number in every format."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="rtx", choices=["rtx", "tensorrt"], help="compiler (rtx)")
    parser.add_argument("--target", default="sm89,sm120", metavar="SM,…", help="architectures (sm89,sm120)")
    parser.add_argument(
        "--formats",
        default="fp16,bf16,bf16-fp8",
        metavar="FORMAT,…",
        help="compute format, compute format-weight format, or the latter with -inputs, as a calibrated export is: "
        "with rounded inputs and low-rank branches (fp16,bf16,bf16-fp8)",
    )
    parser.add_argument(
        "--graphs", default="transformer", metavar="NAME,…", help=f"of {', '.join(NETWORKS)} (transformer)"
    )
    parser.add_argument("--blocks", default="19,38", metavar="D,S", help="double and single blocks (19,38)")
    parser.add_argument(
        "--engine-weights",
        default="bound",
        choices=["bound", "inside"],
        help="inputs, or in the engine (bound)",
    )
    parser.add_argument("--batch", type=int, default=1, help="largest batch (1)")
    parser.add_argument(
        "--profiles", type=int, default=3, help="profiles to compile: one reference, none, several (3)"
    )
    parser.add_argument("--limit", type=float, default=3600, metavar="S", help="seconds per engine (3600)")


def run(arguments: argparse.Namespace) -> None:
    config = full_size(arguments.blocks)
    blocks = [config.transformer.num_double_blocks, config.transformer.num_single_blocks]
    result: dict[str, Any] = {
        "what": "engines",
        "blocks": blocks,
        "engines": [],
        "machine": describe_machine(),
    }
    networks = parse_names(arguments.graphs, "--graphs", tuple(NETWORKS))
    targets = parse_targets(arguments.target)
    for network in networks:
        for formats in arguments.formats.split(","):
            for target in targets:
                result["engines"].append(measure_build(config, network, formats, target, arguments))
                if arguments.json is not None:  # a run may take an hour: an interrupted one keeps its results
                    write_result(arguments.json, result)
    finish(result, tables(result), footer(result), arguments.json)


def write_graph(folder: Path, config: KontextConfig, network: str, formats: str) -> None:
    """Writes the ONNX graph of a network in `formats`, such as bf16, bf16-fp8 or bf16-nvfp4-inputs, and a file of its
    weights, which are 0 and take no space on the disk; scales are positive, as TensorRT wants them."""
    compute, _, quantization = formats.removesuffix(INPUTS).partition("-")
    calibrated = formats.endswith(INPUTS)
    rank = usual_rank(quantization) if calibrated else 0
    recipe = choose_recipe(
        tuple(NETWORKS), FULL_PARAMETERS, compute, quantization or None, rank, calibrated=calibrated
    )
    shapes = {name: tuple(shape) for name, shape in weight_shapes(network, config).items()}
    plan = plan_weights(
        NetworkWeights(network, shapes, {}, {}),
        recipe,
        linear_weights(network, config),
        interface.constants(network, config),
    )
    model = trace.trace_network(network, config, recipe.compute[network])
    bind_weights.bind(model, {weights_file(network): plan}, for_gpu=True)
    (folder / f"{network}.onnx").write_bytes(bind_weights.serialize(model))
    path = folder / weights_file(network)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(plan.header)
        for entry in plan.tensors().values():
            if entry.name.endswith("_scale"):
                file.seek(entry.start)
                file.write(raw_bytes(torch.full(entry.shape, SCALE).to(TORCH_DTYPES[entry.dtype])))
        file.truncate(plan.size)


def outline(folder: Path, config: KontextConfig) -> Bundle:
    """The parts of a bundle that optimization profiles are derived from."""
    transformer, autoencoder, sampler = config.transformer, config.autoencoder, config.sampler
    multiple = 2 * autoencoder.downscale
    return Bundle(
        folder=folder,
        name=config.name,
        transformer=TransformerEntry(
            transformer.in_channels,
            transformer.head_dim,
            transformer.axes_dim,
            transformer.theta,
            transformer.text_dim,
            transformer.pooled_dim,
        ),
        autoencoder=AutoencoderEntry(autoencoder.latent_channels, autoencoder.downscale),
        sampler=SamplerEntry(
            sampler.steps,
            sampler.guidance,
            sampler.base_shift,
            sampler.max_shift,
            sampler.base_tokens,
            sampler.max_tokens,
            multiple,
            tuple(preferred_sizes(autoencoder.sample_size, multiple)),
        ),
        graphs={
            name: GraphEntry(folder / f"{name}.onnx", folder / weights_file(name), interface.OPSET)
            for name in NETWORKS
        },
        tokenizers={"t5": TokenizerEntry(folder / "t5.json", config.text_encoder_2.max_length, 0, 1)},
        files={},
        links={},
        manifest={},
    )


def measure_build(
    config: KontextConfig, network: str, formats: str, target: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Builds one engine; returns its cost, or under "fault" why the build failed."""
    entry: dict[str, Any] = {"graph": network, "precision": formats, "target": target}
    if arguments.engine_weights != "bound":
        entry["weights_are"] = arguments.engine_weights
    with temporary_folder("engines") as temporary:
        folder = Path(temporary)
        start = time.perf_counter()
        write_graph(folder, config, network, formats)
        entry["trace_seconds"] = round(time.perf_counter() - start, 1)
        inputs = interface.network_interface(network, config).inputs
        found = profiles(outline(folder, config), network, arguments.batch, inputs)
        taken = found[: arguments.profiles]
        entry["profiles"] = [profile.use for profile in taken]
        job = {
            "graph": str(folder / f"{network}.onnx"),
            "output": str(folder / "engine"),
            "target": target,
            "weights": arguments.engine_weights,
            "profiles": [dict(profile.inputs) for profile in taken],
            "decompose": network != "transformer",
            "stream": False,
            "timing_cache": None,
        }
        start = time.perf_counter()
        with BuilderProcess(arguments.engine) as builder:
            watch = threading.Timer(arguments.limit, builder.kill)
            watch.start()
            try:
                with Progress(sys.stderr.isatty()).phases(f"{network} {formats} {target}") as phase:
                    entry |= builder.build(job, phase)
            except KontextError as fault:
                entry["fault"] = str(fault)
                entry["seconds"] = round(time.perf_counter() - start, 1)
            finally:
                watch.cancel()
    return entry


def tables(result: dict[str, Any]) -> list[Table]:
    rows = []
    for entry in result["engines"]:
        where = f", weights {entry['weights_are']}" if "weights_are" in entry else ""
        row = [f"{entry['graph']} {entry['precision']}{where}", entry["target"], str(len(entry["profiles"]))]
        if "fault" in entry:
            rows.append([*row, f"{entry['seconds']:.0f}", "", "", entry["fault"]])
        else:
            size, peak = f"{entry['size'] / 1e6:.1f}", gigabytes(entry["peak_bytes"])
            rows.append([*row, f"{entry['seconds']:.0f}", peak, size, ""])
    header = ["engine", "for", "profiles", "time [s]", "peak memory [GB]", "engine [MB]", "fault"]
    return [Table(header, rows)]


def footer(result: dict[str, Any]) -> str:
    double, single = result["blocks"]
    return (
        f"{double} double and {single} single blocks; weights are inputs unless the line says otherwise.\n"
        f"{machine_line(result['machine'])}"
    )
