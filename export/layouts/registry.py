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
    """NAME[:VARIANT] → the layout and its variant, "" for none. Case does not matter.

    Raises:
        KontextError: there is no such layout or variant.
    """
    name, colon, variant = text.partition(":")
    layout = LAYOUTS.get(name.lower())
    if layout is None:
        raise KontextError(f"{name!r} is not a layout: choose from {', '.join(LAYOUTS)}")
    if not colon:
        return layout, ""
    for known in layout.variants:
        if known.lower() == variant.lower():
            return layout, known
    if variant.lower() in layout.formats:
        right = f"write --to {layout.name} --{variant.lower()}"
    elif layout.variants:
        right = f"choose from {', '.join(f'{layout.name}:{each}' for each in layout.variants)}"
    else:
        right = f"write --to {layout.name}"
    raise KontextError(f"{layout.name} has no variant {variant!r}: {right}")


def describe_layouts() -> str:
    """What every layout holds, for the help."""
    return "; ".join(
        f"{each.name} for {each.readers} ({'one file' if each.is_file else 'a folder'}: "
        f"{', '.join([*each.formats, *(f':{variant}' for variant in each.variants)])})"
        for each in LAYOUTS.values()
    )
