"""Runs a bundle's networks in PyTorch, the transformer with Triton kernels.

This room is the only part of the runtime that needs PyTorch; nothing else imports it. Weights are read from the
safetensors files to the device. On a GPU the transformer stays there and its step is a CUDA graph; the other networks,
the modulation among them, are copied from host memory when an edit needs them and removed afterwards.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....bundle_folder import MANIFEST_NAME
from ....compute_capability import sm_name
from ....errors import KontextError
from ....installation import install_command
from ....kernels.archive import INDEX
from ....kernels.driver import register
from ....kernels.launch import device_capability, triton
from ....model.build_network import build_network
from ....model.config import CONFIG_CLASSES, KontextConfig, config_from_json
from ....model.dtypes import COMPUTE_DTYPES
from ....quant.formats.layer_fields import check_layers
from ....quant.recipe import Layer
from ...bundle import OUTPUTS, Bundle
from ...fields import Fields
from ...lora_slots import INPUTS as LORA_INPUTS
from ..options import TorchOptions
from ..protocol import SamplerStep
from . import approximations, memory
from .advice import Device, InputShapes, advise, is_exhausted, tensor_bytes, workload
from .approximations import ApproximateStep
from .compile import check_compiler
from .decode import decode_tiled
from .linear import choose_activations
from .loras import Branches, linear_branches, with_branch, with_branches
from .memory import GraphedStep
from .transformer import Block, Step, choose_attention, read_weights
from .weights import StoredLinear, WeightFile, each_tensor, place, read_network, to_device

LoraInputs = tuple[NDArray[np.float32], ...]
"""A graph's inputs `lora_down` and `lora_up`; empty without LoRAs."""

WIDE = ("timestep", "guidance", "rope_cos", "rope_sin")
"""Inputs that stay in fp32: rounding them to 16 bits alone would change the output visibly."""


@dataclass
class Network:
    """A network other than the transformer: its weights are in host memory, and on the device while it runs."""

    module: nn.Module
    plain: dict[str, Tensor | StoredLinear]
    """The weights without LoRAs."""
    dtype: torch.dtype
    branches: Branches = field(default_factory=dict)
    host: dict[str, Tensor | StoredLinear] = field(init=False)
    """The weights with LoRAs."""
    runs: int = 0

    def __post_init__(self) -> None:
        self.use(self.branches)

    def use(self, branches: Branches) -> None:
        """Puts LoRAs in the place of earlier ones."""
        self.branches = branches
        self.host = {name: self.changed(name) for name in self.plain}

    def changed(self, name: str) -> Tensor | StoredLinear:
        """A weight with its branch, if it has one."""
        value = self.plain[name]
        return value if isinstance(value, Tensor) else with_branch(name, value, self.branches, self.dtype)

    def lock_pages(self) -> None:
        """Moves the weights to page-locked memory, for faster transfers; worth the copy from the second run on."""
        for name, value in self.plain.items():  # one by one: only one of them exists twice at a time
            self.plain[name] = each_tensor(value, memory.page_locked_tensor)
            self.host[name] = self.changed(name)


class TorchBackend:
    """The networks of one bundle.

    Args:
        bundle: exported without --link-weights.
        device: auto, cpu or cuda.
        options: None: the defaults.

    Raises:
        KontextError: no such device, or formats, sizes or options that it cannot compute with.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", options: TorchOptions | None = None) -> None:
        self.bundle = bundle
        self.options = options or TorchOptions()
        self.options.check(device, bundle)
        check_layers(bundle.manifest, bundle.folder)
        self.device = choose_device(device)
        if self.options.offload and self.device.type == "cpu":
            warnings.warn("--offload saves no memory on a CPU: it is for GPUs", stacklevel=2)
        if self.options.compile:
            check_compiler(self.device)
        self.config = read_config(bundle)
        self.attention = choose_attention(
            self.options.attention, self.config.transformer.head_dim, self.device
        )
        if self.device.type == "cuda" and triton is None:
            self.register_kernels()
        self.loras: dict[str, LoraInputs] = {}
        self.networks: dict[str, Network] = {}
        self.transformer: GraphedStep | ApproximateStep | None = None
        self.step_counts = approximations.StepCounts()

    @property
    def approximated(self) -> str:
        """What was approximated since the backend was created, in words; "" for nothing."""
        return approximations.describe(self.options.cache, self.options.reuse_reference, self.step_counts)

    def register_kernels(self) -> None:
        """Registers the bundle's compiled kernels for this GPU, which are used if Triton is not installed."""
        architecture = sm_name(device_capability(self.device))
        folder = self.bundle.folder / "kernels" / architecture
        command = (
            f"{install_command('kernels')}, or kontext-export {self.bundle.folder} --kernels {architecture}"
        )
        if f"kernels/{architecture}/{INDEX}" not in self.bundle.files:
            unlisted = (folder / INDEX).exists()
            found = f"{folder / INDEX} is not in its manifest" if unlisted else "there are none for this GPU"
            raise KontextError(
                f"Triton is not installed, and {self.bundle.folder} holds no compiled kernels: {found}: {command}"
            )
        for name, problem in self.bundle.damaged.items():
            if name.startswith(f"kernels/{architecture}/"):
                raise KontextError(f"Triton is not installed, and {problem}: {command}")
        register(folder, self.bundle.content)

    def dtype(self, graph: str) -> torch.dtype:
        """The dtype that a network computes in."""
        try:
            name = self.options.compute or self.bundle.manifest["precision"]["networks"][graph]
            return COMPUTE_DTYPES[name]
        except (KeyError, TypeError):
            raise KontextError(
                f"{self.bundle.folder / MANIFEST_NAME}: precision.networks.{graph} must be one of "
                f"{', '.join(COMPUTE_DTYPES)} for the torch backend"
            ) from None

    def hold(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """As `Backend.hold`: values are tensors on the device; LoRAs are taken apart by `run`."""
        with self.memory_errors("transformer", {}):
            return {
                name: array if name in LORA_INPUTS else self.tensor("transformer", name, array)
                for name, array in arrays.items()
            }

    def tensor(self, graph: str, name: str, value: Any) -> Tensor:
        """An input on the device, in the dtype that the network takes."""
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        wide = name in WIDE or not tensor.is_floating_point()
        return tensor.to(self.device, None if wide else self.dtype(graph))

    @torch.inference_mode()
    def run(
        self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None
    ) -> dict[str, NDArray[Any]]:
        """As `Backend.run`."""
        loras = tuple(inputs[name] for name in LORA_INPUTS if name in inputs and inputs[name].shape[1])
        inputs = {name: value for name, value in inputs.items() if name not in LORA_INPUTS}
        with self.memory_errors(graph, inputs):
            self.use_loras(graph, loras)
            tensors = {name: self.tensor(graph, name, value) for name, value in inputs.items()}
            if graph == "transformer":
                outputs: tuple[Tensor, ...] = (self.run_transformer(tensors, step),)
            else:
                outputs = self.run_network(graph, tensors)
        arrays = [output.float().cpu().numpy() for output in outputs]
        return dict(zip(OUTPUTS[graph], arrays, strict=True))

    def release(self, *graphs: str) -> None:
        """As `Backend.release`: frees weights on the device and in host memory."""
        for graph in graphs:
            self.networks.pop(graph, None)
            if graph == "transformer" and self.transformer is not None:
                self.transformer = None
                gc.collect()  # reference cycles hold the weights
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def use_loras(self, graph: str, given: LoraInputs) -> None:
        """Changes the branches of a network if it gets other LoRAs than at its last run."""
        before = self.loras.get(graph, ())
        if len(given) == len(before) and all(now is then for now, then in zip(given, before, strict=True)):
            return
        self.loras[graph] = given
        if graph == "transformer" and self.transformer is not None:
            self.transformer.drop_graphs()  # they contain the addresses of the old branches
            assert isinstance(self.transformer.step, Step)
            self.arrange(self.transformer.step)
        elif graph in self.networks:
            self.networks[graph].use(self.branches(graph))

    def branches(self, graph: str) -> Branches:
        """The branches of a network's LoRAs."""
        loras = self.loras.get(graph, ())
        return linear_branches(graph, self.config, *loras) if loras else {}

    # -- the transformer --

    def run_transformer(self, inputs: dict[str, Tensor], step: SamplerStep | None) -> Tensor:
        """The velocity [batch, targets, channels]."""
        self.transformer = self.transformer or self.load_transformer()
        if isinstance(self.transformer, ApproximateStep):
            return self.transformer(inputs, first=step is None or step.index == 0)
        return self.transformer(inputs)

    def load_transformer(self) -> GraphedStep | ApproximateStep:
        """Reads the transformer to the device, or block by block to host memory with `offload`."""
        config = self.config.transformer
        dtype = self.dtype("transformer")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # otherwise weights would be scattered over blocks that earlier stages freed
        file = self.open_weights("transformer", self.device, dtype)
        activations = choose_activations(
            self.options.activations, file.formats(), self.device, file.has_input_scales
        )
        keep = self.to_host if self.options.offload else unchanged
        weights = read_weights(file, config, activations, lambda block: each_tensor(block, keep))
        blocks = memory.resident(())
        step = Step(config, weights, dtype, self.attention, blocks, self.options.compile)
        self.arrange(step)
        graphs = self.options.graphs and not self.options.offload
        cache, reuse = self.options.cache, self.options.reuse_reference
        if cache is not None or reuse is not None:
            return ApproximateStep(step, self.device, graphs, cache, reuse, self.step_counts)
        return GraphedStep(step, self.device, graphs)

    def open_weights(self, graph: str, device: torch.device, dtype: torch.dtype) -> WeightFile:
        """A network's file. Raises KontextError if it lacks a scale of inputs that the manifest says are rounded."""
        file = WeightFile(self.bundle.graphs[graph].weights, device, dtype)
        for name, entry in self.bundle.manifest["precision"].get("layers", {}).get(graph, {}).items():
            if Layer.from_json(entry).has_input_scale and f"{name}_input_scale" not in file:
                raise KontextError(
                    f"{file.path} has no tensor {name}_input_scale, and the manifest says that this layer's inputs "
                    "are rounded with it: export the bundle again"
                )
        return file

    def arrange(self, step: Step) -> None:
        """Gives a step its weights with the transformer's LoRAs, in the place of earlier ones."""
        keep = self.to_host if self.options.offload else unchanged
        weights = with_branches(step.plain, self.branches("transformer"), self.dtype("transformer"), keep)
        blocks: list[Block] = [*weights.double, *weights.single]
        step.weights = weights
        step.blocks = memory.swapped(blocks, self.device) if self.options.offload else memory.resident(blocks)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in host memory, page-locked if the device is a GPU."""
        return memory.page_locked(tensor, self.device)

    # -- the other networks --

    def load_network(self, graph: str) -> Network:
        try:
            with torch.device("meta"):
                module = build_network(graph, self.config)
        except (ValueError, RuntimeError) as error:  # numbers that do not go together
            manifest = self.bundle.folder / MANIFEST_NAME
            raise KontextError(f"{manifest}: model describes no {graph}: {error}") from None
        dtype = self.dtype(graph)
        file = self.open_weights(graph, torch.device("cpu"), dtype)
        return Network(module.eval(), read_network(module, file), dtype, self.branches(graph))

    def run_network(self, graph: str, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Runs a network with all its weights on the device if they fit, else with its linears' weights one by one.

        They may not fit beside the transformer, which stays there; with `offload` they always go one by one. The
        result is the same.
        """
        if graph not in self.networks:
            self.networks[graph] = self.load_network(graph)
        network = self.networks[graph]
        if network.runs == 1 and self.device.type == "cuda":
            network.lock_pages()
        network.runs += 1
        if not self.options.offload:
            with suppress(torch.cuda.OutOfMemoryError):
                return self.run_placed(graph, network, inputs)
            self.make_room()
        return self.run_placed(graph, network, inputs, streamed=True)

    def run_placed(
        self, graph: str, network: Network, inputs: dict[str, Tensor], streamed: bool = False
    ) -> tuple[Tensor, ...]:
        """Copies the weights to the device, runs the network, and removes them again.

        If `streamed`, the linears' weights are only copied while they are used.
        """
        try:
            here = {
                name: value if streamed and isinstance(value, StoredLinear) else to_device(value, self.device)
                for name, value in network.host.items()
            }
            place(network.module, here)
            if graph == "vae_decoder":
                return (self.decode(network.module, inputs["latents"]),)
            outputs = network.module(**inputs)
        finally:
            if self.device.type == "cuda":
                place(network.module, network.host)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def make_room(self) -> None:
        """Frees memory that is not needed: PyTorch's cache and captured CUDA graphs."""
        if self.transformer is not None:
            self.transformer.drop_graphs()
        torch.cuda.empty_cache()

    def decode(self, decoder: nn.Module, latents: Tensor) -> Tensor:
        """Decodes latents at once, or in tiles with the option `tiled` or if the device is out of memory."""
        if not self.options.tiled:
            for _ in range(2):
                with suppress(torch.cuda.OutOfMemoryError):
                    whole: Tensor = decoder(latents)
                    return whole
                self.make_room()
            warnings.warn(
                "not enough GPU memory to decode the whole picture: it is decoded in tiles", stacklevel=2
            )
        return decode_tiled(decoder, latents, self.config.autoencoder.downscale)

    @contextmanager
    def memory_errors(self, graph: str, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Turns out-of-memory errors of the device into a KontextError that says what would fit."""
        exhausted = False
        try:
            yield
        except RuntimeError as error:
            exhausted = is_exhausted(error)
            if not exhausted:
                raise
            forget_frames(error)
        if exhausted:
            shapes = {name: tuple(value.shape) for name, value in inputs.items()}
            self.release(*self.bundle.graphs)
            raise KontextError(self.advice(graph, shapes)) from None

    def advice(self, graph: str, shapes: InputShapes) -> str:
        """What would fit on the device, where `graph` with inputs of these shapes does not."""
        networks = self.bundle.manifest["precision"]["networks"]
        return advise(
            self.config,
            {name: self.options.compute or networks[name] for name in networks},
            graph,
            tensor_bytes(self.bundle, graph),
            workload(self.config, graph, shapes),
            Device.of(self.device),
            offload=self.options.offload,
            reuse=self.options.reuse_reference is not None,
        )


def forget_frames(error: BaseException | None) -> None:
    """Drops the local variables of the frames of an error and its contexts, such as half-loaded weights: the caller may
    keep the error, and with it that memory."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


def choose_device(device: str) -> torch.device:
    """Resolves "auto": CUDA if PyTorch has it, else the CPU.

    Raises:
        KontextError: there is no CUDA device.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise KontextError("device 'cuda' needs a PyTorch with CUDA and an NVIDIA driver: use --device cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def read_config(bundle: Bundle) -> KontextConfig:
    """The networks' sizes from the manifest's `model`."""
    model = bundle.manifest["model"]
    parts: dict[str, Any] = {}
    for name in CONFIG_CLASSES:
        try:
            parts[name] = config_from_json(name, Fields(model, "").group(name).data)
        except (ValueError, KontextError) as error:
            raise KontextError(f"{bundle.folder / MANIFEST_NAME}: model.{name}: {error}") from None
    transformer = parts["transformer"]
    if transformer.hidden_size % transformer.num_heads or sum(transformer.axes_dim) != transformer.head_dim:
        raise KontextError(
            f"{bundle.folder / MANIFEST_NAME}: model.transformer: hidden_size, num_heads and axes_dim do not match"
        )
    return KontextConfig(name=bundle.name, **parts)
