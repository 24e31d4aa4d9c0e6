"""What the encoders made of earlier prompts and references: the least recently used leave when memory is full.

An entry is what the encoder gave for this input alone, so pictures are the same, bit for bit, with a cache and without.
It belongs to one pipeline: keys say nothing of the bundle or of what runs it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import KontextError

Arrays = tuple[NDArray[np.float32], ...]
Key = tuple[str, bytes]
"""PROMPT or REFERENCE, and a SHA-256."""

PROMPT, REFERENCE = KINDS = ("prompt", "reference")

DEFAULT_BYTES = 256 << 20
"""The bound of pipelines that edit again and again. With FLUX.1 Kontext a prompt takes 8 MiB and a reference of a
megapixel 1 MiB."""


class EmbeddingCache:
    """Arrays by key, of `capacity` bytes together at most; 0 keeps nothing. Not thread-safe."""

    def __init__(self, capacity: int) -> None:
        """Raises KontextError if that is no number of bytes."""
        self.capacity = checked_bytes(capacity)
        self.used = 0
        """Bytes of the arrays that are kept."""
        self.hits: Counter[str] = Counter()
        """By kind, as `misses`."""
        self.misses: Counter[str] = Counter()
        self.entries: OrderedDict[Key, Arrays] = OrderedDict()
        """Least recently used first."""

    def find(self, key: Key) -> Arrays | None:
        """The arrays that were kept for `key`; do not change them."""
        found = self.entries.get(key)
        if found is None:
            self.misses[key[0]] += 1
            return None
        self.hits[key[0]] += 1
        self.entries.move_to_end(key)
        return found

    def keep(self, key: Key, arrays: Arrays) -> None:
        """Keeps arrays that `find` did not have; not if they alone are larger than the whole cache."""
        size = sum(each.nbytes for each in arrays)
        if size > self.capacity:
            return
        self.entries[key] = arrays
        self.used += size
        while self.used > self.capacity:
            _, oldest = self.entries.popitem(last=False)
            self.used -= sum(each.nbytes for each in oldest)


def checked_bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        raise KontextError(f"embedding_cache must be a whole number of bytes, or 0, not {value!r}")
    return int(value)


def prompt_key(*token_ids: NDArray[np.int64], salt: bytes = b"") -> Key:
    """Of a prompt's token ids, [1, max_length] of each encoder: prompts with the same ids are the same. `salt` tells
    apart what changes the encoders."""
    digest = hashlib.sha256(salt)
    for ids in token_ids:
        digest.update(ids.tobytes())
    return PROMPT, digest.digest()


def reference_key(picture: Image.Image, size: tuple[int, int]) -> Key:
    """Of the pixels of an upright RGB picture, its own (width, height) and the `size` that it is encoded at."""
    digest = hashlib.sha256(np.array([*picture.size, *size], np.int64).tobytes())
    digest.update(picture.tobytes())
    return REFERENCE, digest.digest()
