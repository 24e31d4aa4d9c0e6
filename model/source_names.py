"""Names of files and folders that mean something on other machines, for what a bundle records: no paths.

A file or folder in the Hugging Face hub's cache has its hub id with the commit, any other its own name; a file whose
name says nothing, since every model's is called so, comes with its folder's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CONTROL

CACHED = re.compile(r"(?:^|/)models--([^/]+)/snapshots/([^/]+)(?:/(.+))?$")
"""owner--name, commit and file of a path in the hub's cache.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache"""

GENERIC_NAMES = ("diffusion_pytorch_model", "model", "pytorch_lora_weights", "adapter_model", "lora")
"""File names, without their endings, that say nothing about the model or LoRA: its folder's name does."""


def seen(name: str) -> str:
    """A name from a user's file or folder, with a question mark for each character that readers of a bundle refuse, or
    that no file in UTF-8 can hold: bytes of a name that are not UTF-8."""
    return re.sub("[\ud800-\udfff]", "?", CONTROL.sub("?", name))


def source_name(path: Path) -> str:
    """owner/name@commit or owner/name@commit:file for what is in the hub's cache, else the last part of `path`, or
    folder/file for a file of a generic name; as `seen`."""
    # Not resolved: in the cache, files are links to blobs, whose names are hashes.
    whole = Path(os.path.abspath(path))
    cached = CACHED.search(whole.as_posix())
    if cached is None:
        if whole.suffix and whole.stem in GENERIC_NAMES and whole.parent.name:
            return seen(f"{whole.parent.name}/{whole.name}")
        return seen(whole.name or str(path))
    owner, commit, file = cached.groups()
    return seen(f"{owner.replace('--', '/', 1)}@{commit}" + (f":{file}" if file else ""))
