"""The metrics of a server of edits: their names, kinds and buckets, whatever counts them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol

from ..embedding_cache import EmbeddingCache

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
ROWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Measure:
    """One family of metrics."""

    name: str
    meaning: str
    kind: Literal["counter", "gauge", "histogram"]
    buckets: tuple[float, ...] = ()


EDITS = Measure("kontext_edits_total", "Edits by outcome", "counter")
STEPS = Measure("kontext_steps_total", "Sampler steps, counted for every picture", "counter")
EDIT_SECONDS = Measure(
    "kontext_edit_seconds", "Seconds from a request's arrival to its last response", "histogram", SECONDS
)
BATCH_ROWS = Measure("kontext_batch_rows", "Pictures sampled in one batch", "histogram", ROWS)
QUEUE_SECONDS = Measure(
    "kontext_queue_seconds", "Seconds from a request's arrival to its batch", "histogram", SECONDS
)
QUEUE_LENGTH = Measure("kontext_queue_length", "Requests that wait for their batch", "gauge")
CACHE_HITS = Measure(
    "kontext_embedding_cache_hits_total", "Prompts and references that were not encoded again", "counter"
)
CACHE_MISSES = Measure(
    "kontext_embedding_cache_misses_total", "Prompts and references that were encoded", "counter"
)
CACHE_BYTES = Measure("kontext_embedding_cache_bytes", "Bytes of what the encoders made and is kept", "gauge")
MEASURES = (
    *(EDITS, STEPS, EDIT_SECONDS, BATCH_ROWS, QUEUE_SECONDS, QUEUE_LENGTH),
    *(CACHE_HITS, CACHE_MISSES, CACHE_BYTES),
)


class CacheCounts:
    """What of a cache's counts the metrics have already."""

    def __init__(self) -> None:
        self.counted: Counter[tuple[Measure, str]] = Counter()

    def since_last(self, embeddings: EmbeddingCache) -> list[tuple[Measure, str, int]]:
        """(measure, kind, increase) of each count since the last call."""
        changes = []
        for measure, counts in ((CACHE_HITS, embeddings.hits), (CACHE_MISSES, embeddings.misses)):
            for kind, count in counts.items():
                changes.append((measure, kind, count - self.counted[measure, kind]))
                self.counted[measure, kind] = count
        return changes


class Counters(Protocol):
    """What counts them; threads may call it at the same time."""

    def edit(self, outcome: str, seconds: float) -> None:
        """An edit has ended, with one of `outcomes.OUTCOMES`."""

    def queued(self, change: int, seconds: float | None = None) -> None:
        """One request more or less that waits; `seconds`: how long it did."""

    def steps(self, rows: int) -> None:
        """One step of so many pictures is done."""

    def batch(self, rows: int) -> None:
        """A batch of so many pictures begins."""

    def cache(self, embeddings: EmbeddingCache) -> None:
        """Takes over what a pipeline's cache has counted."""
