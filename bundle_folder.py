"""What makes a folder a bundle, for those who must not take one for something else, and what it was exported from.

Everything here reads a manifest without trusting it; `runtime.bundle` reads bundles that are to be run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CONTROL, KontextError
from .regular_files import parse_json, read_regular

MANIFEST_NAME = "manifest.json"
FORMAT = "kontext-bundle"

MAX_MANIFEST_BYTES = 16 << 20
"""A larger file is refused: the manifest of a 12 B model is under 1 MB."""

SOURCE_FLAGS = {"base": "--base", "vae": "--vae", "text_encoder": "--clip", "text_encoder_2": "--t5"}
"""Part of a manifest's `source` → the flag that named it."""


def is_bundle(folder: Path) -> bool:
    """Whether a folder's manifest.json is that of a bundle; other software has files of that name too.

    One that is no JSON any more counts where a bundle's graph lies beside it, so that the reader says what is wrong.
    """
    try:
        manifest = parse_json(manifest_bytes(folder))
    except (OSError, KontextError):
        return False
    except ValueError:
        return (folder / "transformer.onnx").is_file()
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def manifest_bytes(folder: Path) -> bytes:
    """The folder's manifest.json. Raises OSError, or KontextError if it can be no manifest."""
    return read_regular(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES, "a manifest")


def bundle_with(path: Path) -> Path | None:
    """The bundle that `path` is, or that lists it among its files; None if there is none."""
    if is_bundle(path):
        return path
    if path.is_dir():
        return None
    whole = path.absolute()
    for folder in list(whole.parents)[:3]:  # kernels/sm_89/kernels.json is the deepest
        if is_bundle(folder):
            listed = manifest_of(folder).get("files", ())
            return folder if whole.relative_to(folder).as_posix() in (MANIFEST_NAME, *listed) else None
    return None


def refuse_bundle(path: Path, flag: str = "") -> None:
    """Raises KontextError if `path` is a bundle or a file of one, where `flag`, or MODEL, takes a checkpoint."""
    folder = bundle_with(path)
    if folder is None:
        return
    what = f"{path} is a bundle" if folder == path else f"{path} is a file of the bundle {folder}"
    remedy = f"{flag} takes a part of a checkpoint" if flag else "export again from its checkpoint"
    raise KontextError(f"{what}: {remedy} ({recorded(manifest_of(folder))})")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `is_bundle`; empty if it cannot be read."""
    try:
        manifest = parse_json(manifest_bytes(folder))
    except (OSError, ValueError, KontextError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def recorded(manifest: Mapping[str, Any]) -> str:
    """What a manifest says about its checkpoint, as "recorded: flux.safetensors --vae ae.safetensors"."""
    source, model = (
        each if isinstance(each, dict) else {} for each in map(manifest.get, ("source", "model"))
    )
    if "model" not in source:
        return f"not recorded; the model is called {clean(model.get('name', 'nothing'))}"
    words = [clean(source["model"])]
    words += [f"{flag} {clean(source[part])}" for part, flag in SOURCE_FLAGS.items() if part in source]
    if "variant" in source:
        words.append(f"--variant {clean(source['variant'])}")
    loras = model.get("loras")
    for lora in loras if isinstance(loras, list) else ():
        if isinstance(lora, dict) and "file" in lora:
            words.append(f"--lora {clean(lora['file'])}:{clean(lora.get('weight', 1))}")
    return f"recorded: {' '.join(words)}"


def clean(value: object) -> str:
    """A value of a manifest from anywhere, for one line of text."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return CONTROL.sub("?", re.sub(r"[^\x20-\x7e\u00a0-\uffff]", "?", text))[:200]
