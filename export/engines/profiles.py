"""The sizes that an engine is compiled for: optimization profiles over tokens, rows and latents.

Kernels are chosen for a whole profile, so one profile per use (no reference, one, several) is faster than one for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...runtime.bundle import Bundle
from ...runtime.engines import Profile, Shape

Range = tuple[int, int, int]
"""Smallest, best and largest size of a dimension."""

REFERENCES = 4
"""Most references of an edit."""

MODULATION_ROWS = 64
"""Most rows (steps times prompts) of one run of the modulation; more take several runs."""

DRAFTS = 4
"""The smallest target has the smallest preferred area divided by this."""


def ranges(bundle: Bundle, graph: str, batch: int) -> dict[str, dict[str, Range]]:
    """Use → dimension of the graph → its sizes, from the bundle's preferred picture sizes, the largest batch, and the
    rank of its LoRAs, 0 without any."""
    most = 0 if bundle.lora_slots is None else bundle.lora_slots.max_rank
    return {use: {**sizes, "lora_rank": (0, most, most)} for use, sizes in uses(bundle, graph, batch).items()}


def uses(bundle: Bundle, graph: str, batch: int) -> dict[str, dict[str, Range]]:
    side = 2 * bundle.autoencoder.downscale  # pixels of a token's side
    sizes = bundle.sampler.preferred_sizes
    rows = (1, 1, batch)
    if graph in ("text_encoder", "text_encoder_2"):
        return {"prompts": {"batch": rows}}
    if graph == "modulation":
        best = min(bundle.sampler.steps, MODULATION_ROWS)
        return {"steps": {"rows": (1, best, MODULATION_ROWS)}}
    square = min(sizes, key=lambda size: abs(size[0] - size[1]))
    if graph in ("vae_encoder", "vae_decoder"):
        scale = bundle.autoencoder.downscale
        sides = [length // scale for size in sizes for length in size]
        height, width = square[1] // scale, square[0] // scale
        least = max(2, min(sides) // 2)  # half the sides: a quarter of the area
        return {
            "pictures": {  # one at a time: here a batch costs memory and no less time
                "batch": (1, 1, 1),
                "latent_height": (least, height, max(sides)),
                "latent_width": (least, width, max(sides)),
            }
        }
    tokens = [width * height // side**2 for width, height in sizes]
    least, best, most = min(tokens), square[0] * square[1] // side**2, max(tokens)
    text = bundle.tokenizers["t5"].max_length
    common = {
        "batch": rows,
        "text_tokens": (text, text, text),
        "target_tokens": (max(1, least // DRAFTS), best, most),
    }
    return {
        "one reference": {**common, "reference_tokens": (least, best, most)},
        "no reference": {**common, "reference_tokens": (0, 0, 0)},
        f"2 to {REFERENCES} references": {
            **common,
            "reference_tokens": (2 * least, 2 * best, REFERENCES * most),
        },
    }


def profiles(
    bundle: Bundle, graph: str, batch: int, inputs: Mapping[str, Sequence[int | str]]
) -> tuple[Profile, ...]:
    """The profiles of a graph. `inputs`: name → shape, dynamic dimensions by name ("8*latent_height")."""
    return tuple(
        Profile(
            use,
            {
                name: (shape_at(shape, sizes, 0), shape_at(shape, sizes, 1), shape_at(shape, sizes, 2))
                for name, shape in inputs.items()
            },
        )
        for use, sizes in ranges(bundle, graph, batch).items()
    )


def shape_at(shape: Sequence[int | str], sizes: Mapping[str, Range], which: int) -> Shape:
    return tuple(size if isinstance(size, int) else evaluate(size, sizes, which) for size in shape)


def evaluate(dimension: str, sizes: Mapping[str, Range], which: int) -> int:
    """A dimension such as `batch`, `8*latent_height` or `text_tokens + target_tokens + reference_tokens`."""
    factor, star, name = dimension.partition("*")
    if star:
        return int(factor) * sizes[name][which]
    return sum(sizes[part][which] for part in dimension.split(" + "))
