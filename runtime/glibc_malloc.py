"""How much freed memory glibc keeps (mallopt, malloc_trim). With another C library these functions do nothing."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3): how much free memory the heap's end may keep, from which size on a block is mapped by
itself, and how many heaps there may be."""

ANOTHER_LIBRARY = (AttributeError, OSError, TypeError)
"""What looking up glibc's functions raises where there is no glibc; TypeError on Windows."""


def map_large_blocks() -> None:
    """Makes glibc map every block of a megabyte or more by itself, so that freeing it returns it to the system.

    By default glibc learns to keep blocks of up to 32 MB in its heap, where tensors of different lifetimes leave holes:
    an autoencoder of 64 to 256 channels took 854 MB to decode 256x256 pixels and takes 284 MB with this.
    """
    with contextlib.suppress(*ANOTHER_LIBRARY):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def return_freed() -> None:
    """Returns freed memory to the system."""
    with contextlib.suppress(*ANOTHER_LIBRARY):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def reused_memory() -> Iterator[None]:
    """Inside this context glibc keeps freed blocks and reuses them.

    FLUX's weights are larger than what glibc keeps by default, so each got new pages, which the system must clear:
    that took longer than reading the weight.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except ANOTHER_LIBRARY:
        yield
        return
    for parameter, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 1 << 30), (M_ARENA_MAX, 1)):
        mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in (
            (M_MMAP_THRESHOLD, 32 << 20),
            (M_TRIM_THRESHOLD, 64 << 20),
            (M_ARENA_MAX, 0),
        ):
            mallopt(parameter, value)
        return_freed()
