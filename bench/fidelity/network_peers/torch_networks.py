"""Peers in PyTorch: a library quantizes the linears of diffusers' and transformers' modules, and runs them itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ....errors import KontextError
from ....runtime.backends.onnxruntime_library import first_line
from ....runtime.backends.protocol import Backend
from ....runtime.bundle import Bundle
from ..bits_per_weight import COUNTED, Layers
from ..quiet import quiet
from .answering import AnsweringBackend
from .calibration import run_scenes
from .reference_modules import ReferenceModules, linears_of, load_modules

Calibrate = Callable[[], None]


@dataclass(frozen=True)
class TorchMethod:
    """How a library quantizes a network.

    `quantize` changes the linears of these paths in place, and runs the calibration (edits through the network) if it
    is `calibrated`. `stored_bits` says what the library would store for a module, scales included; None if it is not
    quantized.
    """

    quantize: Callable[[nn.Module, Sequence[str], Calibrate], None]
    stored_bits: Callable[[nn.Module], int | None]
    calibrated: bool = False

    def try_alone(self, rows: int = 64, columns: int = 64) -> None:
        """Quantizes and runs one linear. Raises whatever the library raises."""
        network = nn.Sequential(nn.Linear(columns, rows)).eval().requires_grad_(False)
        inputs = torch.linspace(-1, 1, 16 * columns).reshape(1, 16, columns)
        self.quantize(network, ["0"], lambda: network(inputs))
        if self.stored_bits(network[0]) is None:
            raise ValueError(f"it leaves a linear of {rows} x {columns} as it is")
        with torch.no_grad():
            network(inputs)


def open_networks(
    name: str, method: TorchMethod, reference: Bundle, backend: Backend, layers: Layers
) -> tuple[Backend, dict[str, int]]:
    """The reference with its networks in PyTorch and `layers` quantized; and for each graph the bits stored for them.

    Raises:
        KontextError: the library cannot quantize a layer, which the message names.
    """
    modules = load_modules(reference)
    linears = linears_of(modules, layers)
    answering = AnsweringBackend(backend, modules.answers())
    quantize_linears(
        name, method, modules, linears, partial(run_scenes, reference, answering, bar=sys.stderr)
    )
    bits = dict.fromkeys(COUNTED, 0)
    for where, paths in linears.items():
        graph = where.partition(": ")[0]
        if graph in bits:
            bits[graph] += sum(method.stored_bits(modules.get_submodule(path)) or 0 for path in paths)
    return answering, bits


def quantize_linears(
    name: str,
    method: TorchMethod,
    modules: ReferenceModules,
    linears: Mapping[str, Sequence[str]],
    calibrate: Calibrate,
) -> None:
    """Quantizes exactly the given linears; `linears` is as `linears_of` returns it.

    Raises:
        KontextError: the library cannot quantize one of them, or leaves it as it is.
    """
    shapes = {path: shape_of(modules, path) for paths in linears.values() for path in paths}
    try:
        with quiet():
            method.quantize(modules, list(shapes), calibrate)
    except Exception as fault:  # each library raises its own types
        where = failing_layer(method, linears, shapes)
        raise KontextError(f"{name} cannot quantize {where}: {first_line(fault)}") from fault
    for where, paths in linears.items():
        for path in paths:
            if method.stored_bits(modules.get_submodule(path)) is None:
                raise KontextError(
                    f"{name} cannot quantize {where} {list(shapes[path])}: it leaves it as it is"
                )


def shape_of(network: nn.Module, path: str) -> tuple[int, ...]:
    weight: Any = network.get_submodule(path).weight
    return tuple(weight.shape)


def failing_layer(
    method: TorchMethod, linears: Mapping[str, Sequence[str]], shapes: Mapping[str, Sequence[int]]
) -> str:
    """The first layer of whose shape the library cannot quantize a linear alone, with the shape."""
    for where, paths in linears.items():
        for path in paths:
            try:
                with quiet():
                    method.try_alone(*shapes[path])
            except Exception:  # as above
                return f"{where} {list(shapes[path])}"
    return "the networks, though each layer alone"


def quantized_paths(method: TorchMethod, network: nn.Module) -> set[str]:
    """The paths of all modules that the library has quantized."""
    return {path for path, module in network.named_modules() if method.stored_bits(module) is not None}


def parent_of(network: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds another one, and its name there."""
    parent, _, name = path.rpartition(".")
    return network.get_submodule(parent), name
