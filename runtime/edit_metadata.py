"""What made a picture: an edit's request as JSON values (`metadata`).

Every field of a request and its row is recorded, so that a new option cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from PIL import Image

from ..installation import VERSION
from .backends.options import AUTO, BackendOptions
from .backends.protocol import Backend
from .bundle import Bundle
from .metadata import FORMAT, PictureDigest, Running
from .request import Request, Row

NOT_RECORDED = ("rows", "references", "repaint", "cfg", "skipped", "loras")
"""Fields that others give again: `references` are what `pictures` are encoded as, `strength` says what is skipped, and
the fields of `repaint` and `cfg` are recorded themselves, LoRAs under `running`."""

RENAMED = {
    "pictures": "references",
    "negative": "negative_prompt",
    "scale": "true_cfg",
    "until": "cfg_until",
}
"""Field → key, where they differ."""

MOST_LORAS = 100


def edit_metadata(
    request: Request, row: Row, bundle: Bundle, running: Running, digests: dict[int, PictureDigest]
) -> dict[str, Any]:
    """What makes the picture of `row` again, as JSON values.

    Args:
        request: with `row` among its rows.
        row: the picture.
        bundle: what edits it.
        running: what runs the networks.
        digests: by the id of an input picture; those that are missing are added.
    """

    def recorded(value: object) -> Any:
        if isinstance(value, Image.Image):
            if id(value) not in digests:
                digests[id(value)] = PictureDigest.of(value)
            return recorded(vars(digests[id(value)]))
        if isinstance(value, Mapping):
            return {name: recorded(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [recorded(each) for each in value]
        if value is None or isinstance(value, (str, int, float)):
            return value
        raise TypeError(f"{type(value).__name__} in a request: record it in edit_metadata.py")

    parts = (row, request, request.cfg, None if row.repaint is None else row.repaint.options)
    settings = {
        RENAMED.get(field.name, field.name): recorded(value)
        for part in parts
        if part is not None
        for field in fields(part)
        if field.name not in NOT_RECORDED and (value := getattr(part, field.name)) != field.default
    }
    return {
        "format": FORMAT,
        **settings,
        "bundle": {"name": bundle.name, "digest": bundle.digest, "loras": fused_loras(bundle)},
        "running": recorded(asdict(running)),
        "version": VERSION,
    }


def fused_loras(bundle: Bundle) -> list[dict[str, Any]]:
    """File and weight of the LoRAs in a bundle, as far as its manifest says so."""
    listed = bundle.manifest["model"].get("loras")
    entries = [each for each in (listed if isinstance(listed, list) else []) if isinstance(each, Mapping)]
    named = [(each.get("file"), each.get("weight")) for each in entries[:MOST_LORAS]]
    return [
        {"file": file[:200], "weight": weight}
        for file, weight in named
        if isinstance(file, str) and isinstance(weight, (int, float))
    ]


def running_with(options: BackendOptions, device: str, backend: Backend) -> Running:
    """What `backend` is to name it again; `device` may be "auto", and is then the one that the backend took."""
    found = str(getattr(backend, "device", device)).lower()
    changed = {
        each.name: value for each in fields(options) if (value := getattr(options, each.name)) != each.default
    }
    return Running(options.name, found if device == AUTO and found in options.devices else device, changed)
