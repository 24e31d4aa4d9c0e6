"""This process's peak of resident memory, from a moment of its choice (Linux)."""

from __future__ import annotations

import re
from pathlib import Path


def reset_peak() -> None:
    """Makes the kernel count the peak from now on (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak of resident memory since `reset_peak`."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/status has no VmHWM, the peak of resident memory")
    return 1024 * int(found[1])
