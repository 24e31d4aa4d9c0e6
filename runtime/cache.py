"""Where things are kept that can be made again: calibrations, the compiler's timings, compiled code."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`kontext-export` in the user's cache folder; nothing in it is needed, and it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kontext-export"
