"""The flags of commands that say what runs a bundle, and the options of a backend that they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..command import Parser, local_name
from ..errors import KontextError
from . import units
from .backends.options import (
    AUTO,
    BACKENDS,
    DEVICES,
    BackendOptions,
    OnnxRuntimeOptions,
    OpenVINOOptions,
    TensorRTOptions,
    TorchOptions,
)
from .backends.select import find_options


@dataclass(frozen=True)
class OptionFlag:
    """The flag of one field of the options of one or several backends."""

    records: tuple[
        type[OnnxRuntimeOptions] | type[TorchOptions] | type[TensorRTOptions] | type[OpenVINOOptions], ...
    ]
    field: str
    help: str
    type: Callable[[str], Any] | None = None
    """None for a flag without a value."""
    metavar: str | None = None

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def selected_by(self) -> str:
        return " or ".join(record.selected_by for record in self.records)

    def add_to(self, parser: Parser) -> None:
        value: dict[str, Any] = {"type": self.type, "metavar": self.metavar}
        if self.type is None:
            value = {"action": "store_const", "const": True}
        parser.add_argument(self.flag, help=f"with {self.selected_by}: {self.help}", **value)


OPTION_FLAGS = (
    OptionFlag(
        (OnnxRuntimeOptions,),
        "provider",
        "a plug-in provider: its library or its wheel's Python module, with options of its own",
        str,
        "LIBRARY[:key=value,…]",
    ),
    OptionFlag(
        (TorchOptions, OnnxRuntimeOptions),
        "activations",
        "what the inputs of linears with quantized weights are rounded to: 16-bit (not at all), or with torch fp8, "
        "int8 or nvfp4 (default: auto, what is fast on the device)",
        str,
        "NAME",
    ),
    OptionFlag(
        (TorchOptions,), "offload", "keep the transformer in host memory, for GPUs that it does not fit"
    ),
    OptionFlag((TorchOptions,), "compile", "let torch.compile generate the code of the transformer's blocks"),
    OptionFlag(
        (TorchOptions,),
        "cache",
        "an approximation: skip all blocks but the first at steps where that one's effect changed by no more than "
        "SHARE, such as 0.1",
        float,
        "SHARE",
    ),
    OptionFlag(
        (TorchOptions,),
        "reuse_reference",
        "an approximation: compute the references' part of the network every N steps only",
        int,
        "N",
    ),
    OptionFlag(
        (TensorRTOptions,),
        "weight_budget",
        "GPU memory for an engine's weights, such as 8GB; the rest is streamed from host memory in every run (default: "
        "as much as fits)",
        partial(units.parse_bytes, flag="--weight-budget"),
        "SIZE",
    ),
    OptionFlag(
        (TorchOptions, OpenVINOOptions),
        "compute",
        "what the networks compute in: fp32, bf16 or fp16 (default: what the bundle says)",
        str,
        "DTYPE",
    ),
)


RUN_BY = {"device", "backend", *(each.field for each in OPTION_FLAGS)}
"""Destinations of the flags that say what runs the networks."""


def add_backend_flags(parser: Parser) -> None:
    """Adds the flags about what runs a bundle, with which LoRAs, and which bundles are run."""
    parser.add_argument(
        "--lora",
        type=local_name,
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="a LoRA that `kontext-export lora` has made ready, for bundles exported with --lora-slots (with --server: "
        "the name of one there); repeatable",
    )
    parser.add_argument("--device", choices=DEVICES, help="where to run (default: auto)")
    parser.add_argument(
        "--backend",
        choices=(AUTO, *BACKENDS),
        help="what runs the networks; torch needs PyTorch, openvino OpenVINO (default: auto)",
    )
    for each in OPTION_FLAGS:
        each.add_to(parser)
    parser.add_argument(
        "--verify", action="store_true", help="compare the bundle's files with their SHA-256 first"
    )
    parser.add_argument(
        "--require-digest",
        metavar="sha256:…",
        help="refuse a bundle with another digest (kontext-export digest BUNDLE prints it), and compare the files that "
        "are used with their SHA-256",
    )
    parser.add_argument(
        "--allow-links",
        action="store_true",
        help="take weights from files outside the bundle that it names, although you have not exported it here",
    )


def backend_options(arguments: argparse.Namespace) -> BackendOptions | str:
    """The options of the backend that the flags select; "auto" if they select nothing. Raises KontextError for a flag
    of another backend."""
    device = arguments.device or AUTO
    chosen = [arguments.backend or AUTO, device, *(getattr(arguments, each.field) for each in OPTION_FLAGS)]
    if set(chosen) <= {AUTO, None}:
        return AUTO
    record = type(find_options(arguments.backend or AUTO, device))
    fields = {}
    for each in OPTION_FLAGS:
        value = getattr(arguments, each.field)
        if value is not None:
            if record not in each.records:
                raise KontextError(f"{each.flag} needs {each.selected_by}")
            fields[each.field] = value
    return record(**fields)
