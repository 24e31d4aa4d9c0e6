"""What ONNX Runtime has no kernels for, known from a bundle's formats before anything is loaded, and what to use
instead.

Met in ONNX Runtime 1.32: its CPU has no Add, MatMul or Conv in bf16, and none of its devices knows E2M1 (NVFP4). And in
OpenVINO 2026.4: it reads E2M1 weights, but no E2M1 codes of values that a graph computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..bundle import Bundle

BF16, NVFP4 = "bf16", "nvfp4"
CPU = "cpu"


@dataclass(frozen=True)
class Formats:
    """What decides where a bundle runs: the formats that networks compute in, those that weights are stored in, and
    whether weights stay in the checkpoint's files, which only ONNX Runtime reads."""

    computes: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    linked: bool = False
    inputs: frozenset[str] = frozenset()
    """Formats that linears' inputs are rounded to; "static int8" where they have static scales."""

    @classmethod
    def of(cls, bundle: Bundle) -> Formats:
        """As the manifest says; fields that it lacks are taken for formats that run everywhere."""
        precision = bundle.manifest.get("precision")
        return cls.of_precision(precision if isinstance(precision, Mapping) else {}, bool(bundle.links))

    @classmethod
    def of_precision(cls, precision: Mapping[str, Any], linked: bool) -> Formats:
        """Of the manifest's `precision`."""
        networks, layers = precision.get("networks"), precision.get("layers")
        computes = networks.values() if isinstance(networks, Mapping) else ()
        return cls(
            frozenset(str(compute) for compute in computes),
            frozenset(layer_fields(layers, "format")),
            bool(linked),
            frozenset(
                f"{rounding} {name}".strip()
                for name, rounding in zip(
                    layer_fields(layers, "activations"), layer_fields(layers, "rounding"), strict=True
                )
                if name
            ),
        )

    def missing(self, device: str) -> str:
        """What ONNX Runtime has no kernels for on a device, "cpu" or another, in words; "" if it has all."""
        if NVFP4 in self.weights:
            return "ONNX Runtime has no kernels for NVFP4"
        if device == CPU and BF16 in self.computes:
            return "ONNX Runtime has no kernels for bf16 on a CPU"
        return ""

    @property
    def missing_in_openvino(self) -> str:
        """What OpenVINO does not take, in words; "" if it takes all."""
        return f"OpenVINO does not take inputs rounded to {NVFP4.upper()}" if NVFP4 in self.inputs else ""

    def refusal(self, device: str) -> str:
        """One line: what is missing on a device, and what would work; "" if nothing is missing."""
        missing = self.missing(device)
        return f"{missing}: {self.instead()}" if missing else ""

    def instead(self) -> str:
        """What runs the bundle without a GPU, as the end of a sentence: flags, or how to export it again."""
        if not self.missing(CPU):
            return "use --device cpu"
        changes = (
            *(("--fp32",) if BF16 in self.computes else ()),
            *(("another format, such as --int4",) if NVFP4 in self.weights else ()),
        )
        again = " and ".join(changes)
        if self.linked:
            return f"export it again with {again}, or without --link-weights to use --backend torch"
        here = "--backend torch" if self.missing_in_openvino else "--device openvino or --backend torch"
        return f"use {here}, or export it again with {again}"


def layer_fields(layers: object, key: str) -> Iterator[str]:
    """A field of every layer in the manifest's `precision.layers`: of a record, or of one that is a format's name; ""
    where it has none."""
    for network in layers.values() if isinstance(layers, Mapping) else ():
        for layer in network.values() if isinstance(network, Mapping) else ():
            record = layer if isinstance(layer, Mapping) else {"format": layer}
            yield str(record.get(key, ""))
