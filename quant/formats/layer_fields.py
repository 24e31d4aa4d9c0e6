"""What may be said of a layer's inputs: one check for the rules of recipes and for the layers of bundles' manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...bundle_folder import MANIFEST_NAME, clean
from ...errors import KontextError
from ...model.stored_dtypes import STORED_DTYPES
from . import FORMATS
from .base import InputRounding

FIELDS = ("format", "rank", "activations", "centred", "rounding", "scaled")
"""Of a layer in `precision.layers`."""


def check_inputs(where: str, name: object, activations: object, rounding: object) -> None:
    """Checks that a weight in the format `name` can have its inputs rounded to `activations` ("": not at all) in the
    way `rounding` ("": the usual one).

    Raises:
        KontextError: it cannot, at `where`; says what would be right.
    """
    rounded = [each for each, format in FORMATS.items() if format.input_roundings]
    if not isinstance(activations, str) or activations not in ("", *rounded):
        raise KontextError(
            f"{where}: activations is {clean(repr(activations))}, expected {', '.join(rounded)} or nothing"
        )
    format = FORMATS.get(name) if isinstance(name, str) else None
    unpacked = activations not in ("", name)
    if unpacked and (format is None or activations not in format.unpacked_inputs):
        takers = [
            activations,
            *(each for each, other in FORMATS.items() if activations in other.unpacked_inputs),
        ]
        raise KontextError(
            f"{where}: {activations} activations need {' or '.join(takers)} weights, and these are {name}"
        )
    ways = [way.value for way in FORMATS[activations].input_roundings] if activations else []
    if not isinstance(rounding, str) or rounding not in ("", *ways):
        expected = " or ".join(ways) if ways else "nothing: there are no activations"
        raise KontextError(f"{where}: rounding is {clean(repr(rounding))}, expected {expected}")
    if unpacked and (rounding or ways[0]) != InputRounding.STATIC.value:
        raise KontextError(
            f'{where}: {activations} activations of {name} weights have a static scale: add "rounding": "static"'
        )


def check_layers(manifest: Mapping[str, object], folder: Path) -> None:
    """Checks the layers in `precision` of the manifest of the bundle in `folder`, if it has any.

    Raises:
        KontextError: names the file and the layer, and says what would be right.
    """
    precision = manifest.get("precision")
    networks = precision.get("layers") if isinstance(precision, Mapping) else None
    for network, layers in networks.items() if isinstance(networks, Mapping) else ():
        for weight, entry in layers.items() if isinstance(layers, Mapping) else ():
            layer = entry if isinstance(entry, Mapping) else {"format": entry}
            where = f"{folder / MANIFEST_NAME}: precision.layers, {clean(network)} {clean(weight)}"
            name = layer.get("format")
            if not isinstance(name, str) or name not in (*FORMATS, *STORED_DTYPES):
                expected = ", ".join((*FORMATS, *STORED_DTYPES))
                raise KontextError(f"{where}: unknown number format {clean(repr(name))}, expected {expected}")
            if unknown := set(layer) - set(FIELDS):
                raise KontextError(
                    f"{where}: unknown field {clean(repr(min(unknown)))}; known are {', '.join(FIELDS)}"
                )
            check_inputs(where, name, layer.get("activations", ""), layer.get("rounding", ""))
