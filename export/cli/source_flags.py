"""The command line's part about where the model comes from."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import KontextError

if TYPE_CHECKING:
    from ...model.checkpoint import Origin

EMBEDDED = Path(__file__).resolve().parents[2] / "tiny" / "checkpoint"
"""The model that comes with the package."""


def add_sources(result: argparse.ArgumentParser) -> None:
    """MODEL, and the options that say where it comes from."""
    result.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a diffusers folder, a .safetensors or .gguf file with the transformer (Black Forest Labs', diffusers' or "
        "ComfyUI's, fp8 too), or a hub id owner/name[@revision] (default: the embedded model)",
    )
    sources = result.add_argument_group("what MODEL lacks, or what goes before it")
    sources.add_argument("--vae", type=Path, metavar="FILE", help="the autoencoder (ae.safetensors)")
    sources.add_argument("--clip", type=Path, metavar="FILE", help="CLIP (clip_l.safetensors)")
    sources.add_argument("--t5", type=Path, metavar="FILE", help="T5 (t5xxl_fp16.safetensors, or a GGUF)")
    sources.add_argument(
        "--base",
        metavar="FOLDER",
        help="a diffusers folder, or a hub id, for all else that a single file lacks: tokenizers, configurations, "
        "weights (default: the folder that MODEL is in, if it is one)",
    )
    sources.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="fuse a LoRA, before quantization; may be given again (default weight: 1)",
    )
    sources.add_argument("--lora-partial", action="store_true", help="take LoRAs that fit only in part")
    sources.add_argument("--name", help="name of the model in the bundle")
    sources.add_argument(
        "--steps",
        type=whole_number(1, 1000),
        metavar="N",
        help="the bundle's default steps (default: the model's or the LoRA's)",
    )


def whole_number(least: int, largest: int) -> Callable[[str], int]:
    """An argument's type: a whole number from `least` to `largest`."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {largest}")
        return int(text)

    return number


def origin(options: argparse.Namespace) -> Origin:
    """What the options say about where the model comes from; hub ids become folders of the hub's cache."""
    from ...model.checkpoint import Origin
    from ...model.lora import parse_request

    model = options.model
    if model is None:
        model = EMBEDDED
        if not (model / "model_index.json").exists():
            raise KontextError("the embedded model is not part of this installation: name a checkpoint")
    return Origin(
        located(model),
        {
            component: path
            for component, path in (
                ("vae", options.vae),
                ("text_encoder", options.clip),
                ("text_encoder_2", options.t5),
            )
            if path is not None
        },
        None if options.base is None else located(options.base),
        options.name,
        [parse_request(text) for text in options.lora],
        options.lora_partial,
        options.steps,
    )


def located(name: str | Path) -> Path:
    """A path as it is, a hub id's folder in the hub's cache."""
    from ...model.hub import download, is_hub_id

    return download(str(name)) if is_hub_id(str(name)) else Path(name)
