"""Names of files and folders that mean something on other machines, for what a bundle records: no paths.

A file or folder in the Hugging Face hub's cache has its hub id with the commit, any other its own name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

CACHED = re.compile(r"(?:^|/)models--([^/]+)/snapshots/([^/]+)(?:/(.+))?$")
"""owner--name, commit and file of a path in the hub's cache.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache"""


def source_name(path: Path) -> str:
    """owner/name@commit or owner/name@commit:file for what is in the hub's cache, else the last part of `path`."""
    # Not resolved: in the cache, files are links to blobs, whose names are hashes.
    whole = Path(os.path.abspath(path))
    cached = CACHED.search(whole.as_posix())
    if cached is None:
        return whole.name or str(path)
    owner, commit, file = cached.groups()
    return f"{owner.replace('--', '/', 1)}@{commit}" + (f":{file}" if file else "")
