"""Which of a bundle's number formats a card and the library take, and where an engine's weights are best kept for them.

What is said here of the compiler was read from its own account of the layers it makes (TensorRT for RTX 1.7.1, detailed
verbosity); docs/engines.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...compute_capability import parse_capability
from ...errors import KontextError
from ...runtime.bundle import MANIFEST_NAME, Bundle

FIRST_WITH = {"bf16": 80, "fp8": 89, "nvfp4": 100}
"""Number format → the first architecture that computes with it."""

NOT_PARSED = ("nf4", "uint4")
"""Formats whose graphs need operators or zero points that the parser does not take."""

FUSED_AS_CONSTANTS = ("int4", "nvfp4")
"""Formats that are unpacked inside the product only where the weights are the engine's own; as inputs they are
unpacked to 16 bits first, by a kernel of its own."""


@dataclass(frozen=True)
class Formats:
    """What a graph computes in, the other formats of its weights, and those that linears' inputs are rounded to."""

    compute: str
    weights: tuple[str, ...]
    activations: tuple[str, ...]

    def __str__(self) -> str:
        rounded = [f"{name}inputs" for name in self.activations]
        return "-".join([self.compute, *self.weights, *rounded])


def formats_of(bundle: Bundle, graph: str) -> Formats:
    """Raises KontextError where the manifest does not say."""
    try:
        noted = bundle.manifest["precision"]
        compute = str(noted["networks"][graph])
        layers = [
            {"format": layer} if isinstance(layer, str) else layer
            for layer in noted["layers"].get(graph, {}).values()
        ]
        weights = {str(layer["format"]) for layer in layers} - {compute}
        activations = {str(layer["activations"]) for layer in layers if layer.get("activations")}
    except (KeyError, TypeError, AttributeError):
        raise KontextError(f"{bundle.folder / MANIFEST_NAME}: precision is not what it should be") from None
    return Formats(compute, tuple(sorted(weights)), tuple(sorted(activations)))


def check_bundle(bundle: Bundle, target: str) -> None:
    """Raises KontextError where the compiler would, in more words than it has, or where an engine would be wrong."""
    if bundle.links:
        raise KontextError(
            f"{bundle.folder} takes weights from other files, and engines are built of a bundle's own: export "
            "without --link-weights"
        )
    if formats_of(bundle, "transformer").compute == "fp32":
        raise KontextError(
            f"{bundle.folder} computes in fp32, and TensorRT has attention in 16 bits only: export with --bf16 or "
            "--fp16"
        )
    capability = parse_capability(target) or 0
    for graph in bundle.graphs:
        formats = formats_of(bundle, graph)
        for name in formats.weights:
            if name in NOT_PARSED:
                raise KontextError(f"TensorRT does not take {name} ({graph}): export with --int4 or --fp8")
        if "int8" in formats.activations:
            raise KontextError(
                f"TensorRT does not take inputs rounded to INT8 at run time ({graph}): export with --weight-only"
            )
        if "fp8" in formats.activations and formats.compute == "fp16":
            # The product comes out in fp16 before it is scaled: sums of up to 448 * 448.
            raise KontextError(f"products in FP8 leave the range of fp16 ({graph}): export with --bf16 --fp8")
        for name in (formats.compute, *formats.weights, *formats.activations):
            if capability < FIRST_WITH.get(name, 0):
                raise KontextError(
                    f"{target} has no {name} ({graph}): it takes bundles made with --fp16, with --int8 --weight-only "
                    "or --int4 beside it"
                )


def best_weights(formats: Formats, gpu: bool) -> str:
    """Where an engine's weights are best kept.

    Put in at load by the library, where there is a GPU to build on. Else as inputs, unless the compiler makes less of
    these: 4-bit weights, and products with rounded inputs, which would not be computed in FP8.
    """
    if gpu:
        return "stripped"
    return "inside" if formats.activations or set(formats.weights) & set(FUSED_AS_CONSTANTS) else "bound"
