"""The metrics that `kontext_stream` adds to the server's: edits by outcome, seconds, the queue, steps, batches, what
was found in the cache of embeddings."""

from __future__ import annotations

import threading
from collections import Counter

import triton_python_backend_utils as pb_utils

from ..embedding_cache import KINDS, EmbeddingCache

OUTCOMES = ("ok", "invalid", "refused", "busy", "cancelled", "late", "failed")
SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250]
ROWS = [1, 2, 4, 8, 16]


class Metrics:
    """Prometheus counters and histograms of one model, shared by its instances."""

    def __init__(self, model: str) -> None:
        family, labels = pb_utils.MetricFamily, {"model": model}
        self.lock = threading.Lock()
        """The server (2.51) ends with SIGSEGV when threads change metrics at the same time; so does whoever asks it."""
        self.waiting = 0
        self.families = {
            name: family(name=name, description=text, kind=kind)
            for name, text, kind in (
                ("kontext_edits_total", "Edits by outcome", family.COUNTER),
                ("kontext_steps_total", "Sampler steps, counted for every picture", family.COUNTER),
                (
                    "kontext_edit_seconds",
                    "Seconds from a request's arrival to its last response",
                    family.HISTOGRAM,
                ),
                ("kontext_batch_rows", "Pictures sampled in one batch", family.HISTOGRAM),
                ("kontext_queue_seconds", "Seconds from a request's arrival to its batch", family.HISTOGRAM),
                ("kontext_queue_length", "Requests that wait for their batch", family.GAUGE),
                (
                    "kontext_embedding_cache_hits_total",
                    "Prompts and references that were not encoded again",
                    family.COUNTER,
                ),
                (
                    "kontext_embedding_cache_misses_total",
                    "Prompts and references that were encoded",
                    family.COUNTER,
                ),
                (
                    "kontext_embedding_cache_bytes",
                    "Bytes of what the encoders made and is kept",
                    family.GAUGE,
                ),
            )
        }
        made = self.families
        self.edits = {
            outcome: made["kontext_edits_total"].Metric(labels={**labels, "outcome": outcome})
            for outcome in OUTCOMES
        }
        self.rows_stepped = made["kontext_steps_total"].Metric(labels=labels)
        self.seconds = made["kontext_edit_seconds"].Metric(labels=labels, buckets=SECONDS)
        self.rows = made["kontext_batch_rows"].Metric(labels=labels, buckets=ROWS)
        self.queue_seconds = made["kontext_queue_seconds"].Metric(labels=labels, buckets=SECONDS)
        self.queue_length = made["kontext_queue_length"].Metric(labels=labels)

        self.found, self.encoded = (
            {
                kind: made[f"kontext_embedding_cache_{name}_total"].Metric(labels={**labels, "kind": kind})
                for kind in KINDS
            }
            for name in ("hits", "misses")
        )
        self.cached_bytes = made["kontext_embedding_cache_bytes"].Metric(labels=labels)
        self.counted: Counter[tuple[str, str]] = Counter()
        """Of the cache, what the metrics have."""

    def edit(self, outcome: str, seconds: float) -> None:
        with self.lock:
            self.edits[outcome].increment(1)
            self.seconds.observe(seconds)

    def queued(self, change: int, seconds: float | None = None) -> None:
        """One request more or less that waits; `seconds`: how long it did."""
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
        """Takes over what a pipeline's cache has counted since the last call."""
        with self.lock:
            for name, metrics, counts in (
                ("hits", self.found, embeddings.hits),
                ("misses", self.encoded, embeddings.misses),
            ):
                for kind, count in counts.items():
                    metrics[kind].increment(count - self.counted[name, kind])
                    self.counted[name, kind] = count
            self.cached_bytes.set(embeddings.used)
