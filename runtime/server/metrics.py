"""The metrics that `kontext_stream` adds to the server's (`measures`)."""

from __future__ import annotations

import threading

import triton_python_backend_utils as pb_utils

from ..embedding_cache import KINDS, EmbeddingCache
from . import measures
from .outcomes import OUTCOMES


class Metrics:
    """Prometheus counters and histograms of one model, shared by its instances; `measures.Counters`."""

    def __init__(self, model: str) -> None:
        family, labels = pb_utils.MetricFamily, {"model": model}
        self.lock = threading.Lock()
        """The server (2.51) ends with SIGSEGV when threads change metrics at the same time; so does whoever asks it."""
        self.waiting = 0
        self.families = {
            each: family(name=each.name, description=each.meaning, kind=getattr(family, each.kind.upper()))
            for each in measures.MEASURES
        }
        made = self.families
        self.edits = {
            outcome: made[measures.EDITS].Metric(labels={**labels, "outcome": outcome})
            for outcome in OUTCOMES
        }
        self.rows_stepped = made[measures.STEPS].Metric(labels=labels)
        self.seconds, self.rows, self.queue_seconds = (
            made[each].Metric(labels=labels, buckets=list(each.buckets))
            for each in (measures.EDIT_SECONDS, measures.BATCH_ROWS, measures.QUEUE_SECONDS)
        )
        self.queue_length = made[measures.QUEUE_LENGTH].Metric(labels=labels)
        self.cached = {
            (each, kind): made[each].Metric(labels={**labels, "kind": kind})
            for each in (measures.CACHE_HITS, measures.CACHE_MISSES)
            for kind in KINDS
        }
        self.cached_bytes = made[measures.CACHE_BYTES].Metric(labels=labels)
        self.cache_counts = measures.CacheCounts()

    def edit(self, outcome: str, seconds: float) -> None:
        with self.lock:
            self.edits[outcome].increment(1)
            self.seconds.observe(seconds)

    def queued(self, change: int, seconds: float | None = None) -> None:
        with self.lock:
            self.waiting += change
            self.queue_length.set(self.waiting)
            if seconds is not None:
                self.queue_seconds.observe(seconds)

    def steps(self, rows: int) -> None:
        with self.lock:
            self.rows_stepped.increment(rows)

    def batch(self, rows: int) -> None:
        with self.lock:
            self.rows.observe(rows)

    def cache(self, embeddings: EmbeddingCache) -> None:
        with self.lock:
            for measure, kind, more in self.cache_counts.since_last(embeddings):
                self.cached[measure, kind].increment(more)
            self.cached_bytes.set(embeddings.used)
