"""Pictures behind links: held in memory until they expire, or until newer ones need their place."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 3600.0
BYTES = 256 << 20


@dataclass(frozen=True)
class File:
    data: bytes
    media_type: str
    expires: float


class Held:
    """Files by names that cannot be guessed; for one thread.

    Args:
        seconds: how long each is held.
        most_bytes: of all together; the oldest go first.
        clock: in seconds.
    """

    def __init__(
        self,
        seconds: float = SECONDS,
        most_bytes: int = BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.most_bytes = most_bytes
        self.clock = clock
        self.files: OrderedDict[str, File] = OrderedDict()
        self.bytes = 0

    def put(self, data: bytes, media_type: str, suffix: str) -> str:
        """Holds a file; returns its name."""
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        self.files[name] = File(data, media_type, self.clock() + self.seconds)
        self.bytes += len(data)
        self.sweep()
        return name

    def get(self, name: str) -> File | None:
        self.sweep()
        return self.files.get(name)

    def sweep(self) -> None:
        now = self.clock()
        while self.files:
            oldest = next(iter(self.files))
            if self.bytes <= self.most_bytes and self.files[oldest].expires > now:
                return
            self.bytes -= len(self.files.pop(oldest).data)
