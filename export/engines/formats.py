"""Which of a bundle's number formats TensorRT and a GPU support, and where an engine's weights are best kept for them.

`NumberFormat.tensorrt` has what the compiler makes of each format, read from its report of an engine's layers (TensorRT
for RTX 1.7.1, detailed verbosity); docs/engines.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...bundle_folder import MANIFEST_NAME
from ...compute_capability import parse_capability
from ...errors import KontextError
from ...quant.formats import FORMATS
from ...quant.formats.base import InputRounding, TensorRT
from ...quant.formats.layer_fields import check_layers
from ...runtime.bundle import Bundle

BF16_CAPABILITY = 80
"""Lowest compute capability, times ten, that computes in bf16."""

FP32_CAPABILITY = 80
"""Lowest compute capability, times ten, that TensorRT for RTX compiles products in fp32 for: "FP32 GEMM is not
supported" for Turing."""


@dataclass(frozen=True)
class GraphFormats:
    """What a graph computes in, the number formats of its weights, and those that linears' inputs are rounded to; of
    the last, `dynamic` are those with a scale for each token and `blocks` those with one for each block; `unpacked` are
    those of weights that are unpacked to another format, their inputs'."""

    compute: str
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    dynamic: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()

    def __str__(self) -> str:
        rounded = [f"{name}inputs" for name in self.activations]
        return "-".join([self.compute, *self.weights, *rounded])


def formats_of(bundle: Bundle, graph: str) -> GraphFormats:
    """Reads them from the manifest.

    Raises:
        KontextError: it does not have them, they are unknown, or do not go together.
    """
    check_layers(bundle.manifest, bundle.folder)
    try:
        noted = bundle.manifest["precision"]
        compute = str(noted["networks"][graph])
        layers = [
            {"format": layer} if isinstance(layer, str) else layer
            for layer in noted["layers"].get(graph, {}).values()
        ]
        weights = {str(layer["format"]) for layer in layers} - {compute}
        unpacked = {
            str(each["format"])
            for each in layers
            if each.get("activations", each["format"]) != each["format"]
        }
        rounded = {
            (str(layer["activations"]), str(layer.get("rounding", "")))
            for layer in layers
            if layer.get("activations")
        }
    except (KeyError, TypeError, AttributeError):
        raise KontextError(f"{bundle.folder / MANIFEST_NAME}: precision is damaged") from None
    activations = {name for name, _ in rounded}
    if unknown := (weights | activations) - set(FORMATS):
        raise KontextError(f"{bundle.folder / MANIFEST_NAME}: unknown number format {min(unknown)!r}")
    ways = {(name, rounding or FORMATS[name].input_roundings[0].value) for name, rounding in rounded}
    dynamic, blocks = (
        {name for name, way in ways if way == wanted.value}
        for wanted in (InputRounding.DYNAMIC, InputRounding.BLOCKS)
    )
    parts = (weights, activations, dynamic, unpacked, blocks)
    return GraphFormats(compute, *(tuple(sorted(each)) for each in parts))


def check_bundle(bundle: Bundle, target: str, weights: str | None = None) -> None:
    """Raises KontextError, in plainer words than the compiler's, for what it refuses and where an engine would be
    wrong; `weights` is where the user wants them."""
    if bundle.links:
        raise KontextError(
            f"{bundle.folder} was exported with --link-weights, and engines need a bundle with its own weights: export "
            "without it"
        )
    if formats_of(bundle, "transformer").compute == "fp32":
        raise KontextError(
            f"{bundle.folder} computes in fp32, and TensorRT's attention takes 16 bits only: export with --bf16 or "
            "--fp16"
        )
    capability = parse_capability(target) or 0
    for graph in bundle.graphs:
        formats = formats_of(bundle, graph)
        if formats.compute == "fp32" and capability < FP32_CAPABILITY:
            raise KontextError(
                f"TensorRT does not multiply in fp32 on {target} ({graph}), and fp16 is too small for T5: run the "
                "bundle without engines (--device cuda)"
            )
        for name in formats.weights:
            if FORMATS[name].tensorrt is TensorRT.REFUSED:
                raise KontextError(f"TensorRT does not take {name} ({graph}): export with --int4 or --fp8")
        if weights == "bound" and formats.unpacked:
            raise KontextError(
                f"TensorRT does not unpack {formats.unpacked[0].upper()} weights to the format of rounded inputs where "
                f"they are inputs of the engine ({graph}): use --engine-weights inside"
            )
        for name in formats.activations:
            if name in formats.dynamic:
                raise KontextError(
                    f"TensorRT does not take inputs rounded to {name.upper()} at run time ({graph}): export with "
                    "--weight-only, or with --static-inputs and a calibration"
                )
        for name in (formats.compute, *formats.weights, *formats.activations):
            if capability < min_capability(name):
                raise KontextError(
                    f"{target} does not compute in {name} ({graph}): export with {nearest_flags(name, capability)}"
                )


NEAREST = {
    "bf16": ("fp16", "--fp16"),
    "fp8": ("int8", "--int8 --static-inputs"),
    "nvfp4": ("int4", "--int4"),
    "int4": ("int8", "--int8 --weight-only"),
}
"""Format → the one that comes next to it on GPUs that lack it, and the flags of its export."""


def nearest_flags(name: str, capability: int) -> str:
    """Flags of an export in the format nearest to `name` that engines for a GPU of `capability` compute in."""
    name, flags = NEAREST[name]
    return nearest_flags(name, capability) if capability < min_capability(name) else flags


def min_capability(name: str) -> int:
    """Of GPUs that engines in a format are compiled for: of weights, or of the whole graph."""
    if name in FORMATS:
        return max(FORMATS[name].min_capability, FORMATS[name].tensorrt_capability)
    return BF16_CAPABILITY if name == "bf16" else 0


def best_weights(formats: GraphFormats, gpu: bool) -> str:
    """Where an engine's weights are best kept: "stripped", "inside" or "bound".

    On a GPU the library puts them in at load. Else they are inputs, unless the compiler makes less of these: formats
    that it fuses only as constants, and products with rounded inputs, which would not be computed in 8 bits.
    """
    if gpu:
        return "stripped"
    constants = any(FORMATS[name].tensorrt is TensorRT.FUSED_CONSTANTS for name in formats.weights)
    return "inside" if formats.activations or constants else "bound"
