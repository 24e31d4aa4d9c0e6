"""The layouts of `--to`, by name. To add one: its file here, its line in `LAYOUTS`, its test, its row in
docs/layouts.md."""

from __future__ import annotations

from ...errors import KontextError
from .bfl import BFL
from .comfyui import COMFYUI, COMFYUI_CHECKPOINT
from .diffusers import DIFFUSERS
from .gguf import GGUF
from .layout import Layout
from .optimum import OPTIMUM

LAYOUTS: dict[str, Layout] = {
    each.name: each for each in (DIFFUSERS, BFL, COMFYUI, COMFYUI_CHECKPOINT, GGUF, OPTIMUM)
}
"""By name, in the order in which they are listed."""


def parse_layout(text: str) -> tuple[Layout, str]:
    """NAME[:VARIANT] → the layout and its variant, "" for none.

    Raises:
        KontextError: there is no such layout or variant.
    """
    name, colon, variant = text.partition(":")
    if name not in LAYOUTS:
        raise KontextError(f"{name!r} is not a layout: choose from {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    if colon and variant not in layout.variants:
        known = ", ".join(f"{name}:{each}" for each in layout.variants)
        raise KontextError(
            f"{name} has no variant {variant!r}: "
            + (f"choose from {known}" if known else f"write --to {name}")
        )
    return layout, variant


def describe_layouts() -> str:
    """What every layout holds, for the help."""
    return "; ".join(
        f"{each.name} for {each.readers} ({'one file' if each.is_file else 'a folder'}: "
        f"{', '.join([*each.formats, *(f':{variant}' for variant in each.variants)])})"
        for each in LAYOUTS.values()
    )
