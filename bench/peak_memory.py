"""This process's resident memory: its peak from a moment of its choice, and what of it is no file's (Linux)."""

from __future__ import annotations

import re
from pathlib import Path


def reset_peak() -> None:
    """Makes the kernel count the peak from now on (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak of resident memory since `reset_peak`, with the resident pages of mapped files."""
    return status_bytes("VmHWM")


def anonymous_bytes() -> int:
    """Resident memory without the pages of files, which the system can take back."""
    return status_bytes("RssAnon")


def status_bytes(field: str) -> int:
    """A field of /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return 1024 * int(found[1])
