"""The folder for what can be computed again: calibrations, graphs, kernels' timings, compiled code.

It may be missing, unreadable or read-only, as in containers; whoever uses it then computes again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`kontext-export` in the user's cache folder. Deleting it is safe; it may not exist yet."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def user_folder(variable: str, default: str) -> Path:
    """`kontext-export` in one of the user's folders (XDG Base Directory Specification); it may not exist yet.

    For a user without a home it is a path at which nothing can be: it reads as missing, and writing is an OSError.

    Args:
        variable: the environment variable that names the folder.
        default: relative to the user's home.
    """
    named = os.environ.get(variable, "")
    if os.path.isabs(named):  # the specification ignores others
        return Path(named) / "kontext-export"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no such user in /etc/passwd
        return Path(os.devnull) / "kontext-export"
    return home / default / "kontext-export"


def writable_cache(name: str) -> Path | None:
    """The folder `name` in `cache_folder()`, made if it does not exist; None if files cannot be written there."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # root may write where a read-only mount forbids it
            return folder
    except OSError:
        return None


def read_cached(path: Path) -> bytes:
    """The bytes of a file in the cache; none if it does not exist or cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_cached(path: Path) -> bool:
    """Whether a file in the cache can be read."""
    return os.access(path, os.R_OK) and os.path.isfile(path)
