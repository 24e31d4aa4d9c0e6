"""The flags about where the model comes from."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...command import local_name, local_path
from ...errors import KontextError

if TYPE_CHECKING:
    from ...model.checkpoint import Origin

EMBEDDED = Path(__file__).resolve().parents[2] / "tiny" / "checkpoint"
"""The embedded model."""


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL, and the flags that add to it."""
    parser.add_argument(
        "model",
        type=partial(local_name, hub=True),
        nargs="?",
        metavar="MODEL",
        help="a diffusers folder, a .safetensors or .gguf file with the transformer (Black Forest Labs', diffusers' or "
        "ComfyUI's, fp8 too), or a hub id owner/name[@revision] (default: the embedded model)",
    )
    group = parser.add_argument_group("what MODEL lacks, or what replaces a part of it")
    group.add_argument("--vae", type=local_path, metavar="FILE", help="the autoencoder (ae.safetensors)")
    group.add_argument("--clip", type=local_path, metavar="FILE", help="CLIP (clip_l.safetensors)")
    group.add_argument("--t5", type=local_path, metavar="FILE", help="T5 (t5xxl_fp16.safetensors, or a GGUF)")
    group.add_argument(
        "--base",
        type=partial(local_name, hub=True),
        metavar="FOLDER",
        help="a diffusers folder, or a hub id, for whatever else a single file lacks: tokenizers, configurations, "
        "weights (default: the folder of MODEL, if it is a diffusers folder)",
    )
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="read these weights of a folder that has several, such as fp16 (default: the plain ones)",
    )
    group.add_argument(
        "--lora",
        type=local_name,
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="fuse a LoRA, LoKr, LoHa or DoRA, or the folder of one, before quantization; repeatable (default "
        "weight: 1)",
    )
    group.add_argument("--lora-partial", action="store_true", help="accept LoRAs of which only a part fits")
    group.add_argument("--name", help="name of the model in the bundle")
    group.add_argument(
        "--steps",
        type=whole_number(1, 1000),
        metavar="N",
        help="the bundle's default steps (default: the model's or the LoRA's)",
    )
    group.add_argument(
        "--max-sequence-length",
        type=whole_number(2, 512),
        metavar="N",
        help="tokens that prompts are padded or cut to for T5; less is faster (default: the tokenizer's limit, 512)",
    )


def whole_number(least: int, largest: int) -> Callable[[str], int]:
    """An argument's type: a whole number from `least` to `largest`."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {largest}")
        return int(text)

    return number


def origin_of(options: argparse.Namespace) -> Origin:
    """Where the model comes from; downloads hub ids into the hub's cache.

    Raises:
        KontextError: a download failed, a LoRA's weight is no number, or there is no embedded model to fall back on.
    """
    from ...lora_flag import parse_lora_flag
    from ...model.checkpoint import Origin

    model = options.model
    if model is None:
        model = EMBEDDED
        if not (model / "model_index.json").exists():
            raise KontextError("this installation has no embedded model: name a checkpoint")
    files = {"vae": options.vae, "text_encoder": options.clip, "text_encoder_2": options.t5}
    return Origin(
        model_path(model),
        {component: path for component, path in files.items() if path is not None},
        None if options.base is None else model_path(options.base),
        options.name,
        [parse_lora_flag(text) for text in options.lora],
        options.lora_partial,
        options.steps,
        options.variant,
        options.max_sequence_length,
        "the embedded model" if Path(model).resolve() == EMBEDDED else None,
    )


def model_path(name: str | Path) -> Path:
    """A path unchanged; for a hub id its folder in the hub's cache, downloaded if need be."""
    from ...model.hub import download_model, is_hub_id

    return download_model(str(name)) if is_hub_id(str(name)) else Path(name)
