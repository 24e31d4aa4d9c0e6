"""Disks that are full: before an export, which is then not begun, and during it."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...errors import KontextError
from ...runtime.units import gigabytes
from .folder_kind import Kind

SPARE_BYTES = 16 << 20
"""Disk space for everything but weights: graphs, tokenizers, manifest."""


@contextlib.contextmanager
def disk_errors(partial: Path) -> Iterator[None]:
    """Turns OSError into KontextError."""
    try:
        yield
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise KontextError(
                f"the disk is full: free some space and run the same command again, which resumes from {partial}"
            ) from None
        raise KontextError(f"cannot write {fault.filename or partial}: {fault.strerror}") from None


def check_disk_space(partial: Path, needed: int, kind: Kind) -> None:
    """Refuses to start what cannot finish; what an earlier run left in OUT.partial counts as free space.

    Args:
        partial: the folder that will be written.
        needed: bytes of its weights.
        kind: what it is, for the message.
    """
    existing = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(partial.parent).free
    if free + existing < needed + SPARE_BYTES:
        raise KontextError(
            f"not enough disk space: the {kind.name} needs {gigabytes(needed + SPARE_BYTES)}, "
            f"{partial.parent} has {gigabytes(free + existing)} free"
        )
