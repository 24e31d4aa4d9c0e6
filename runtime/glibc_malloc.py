"""What the C library keeps of memory that was freed, where it is glibc; elsewhere nothing is changed."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt(3): what is kept at the heap's end, from which size on a block is mapped on its own,
and how many heaps there may be."""


def map_large_blocks() -> None:
    """Has every block of a megabyte mapped on its own from now on, where the C library is glibc.

    Left alone it learns to keep blocks of up to 32 MB in its heap, where tensors of different lifetimes leave holes: an
    autoencoder of 64 to 256 channels took 854 MB to decode 256x256 pixels, and takes 284.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def return_freed() -> None:
    """Gives freed memory back to the system, where the C library is glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def reused_memory() -> Iterator[None]:
    """Has freed blocks used again instead of given back to the system, where the C library is glibc.

    A weight of FLUX is larger than what glibc keeps, so every one came in new pages, which the system must clear: that
    took more time than reading it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
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
