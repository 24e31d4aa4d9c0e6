"""The folder for what can be computed again: calibrations, graphs, kernels' timings, compiled code."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`kontext-export` in the user's cache folder. Deleting it is safe; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kontext-export"
