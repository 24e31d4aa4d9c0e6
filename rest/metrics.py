"""The server's metrics for Prometheus: those of every server of edits (`measures`), and of HTTP."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..runtime.embedding_cache import EmbeddingCache
from ..runtime.server import measures
from ..runtime.server.outcomes import OUTCOMES


class Metrics:
    """`measures.Counters`; threads may use it."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        edits = self.counter(measures.EDITS, "model", "outcome")
        self.edits = {outcome: edits.labels(model, outcome) for outcome in OUTCOMES}
        self.rows_stepped = self.counter(measures.STEPS, "model").labels(model)
        self.seconds, self.rows, self.queue_seconds = (
            self.histogram(each, model)
            for each in (measures.EDIT_SECONDS, measures.BATCH_ROWS, measures.QUEUE_SECONDS)
        )
        self.queue_length = self.gauge(measures.QUEUE_LENGTH, model)
        found, missed = measures.CACHE_HITS, measures.CACHE_MISSES
        self.cached = {each: self.counter(each, "model", "kind") for each in (found, missed)}
        self.cached_bytes = self.gauge(measures.CACHE_BYTES, model)
        self.cache_counts = measures.CacheCounts()
        self.responses = Counter(
            "kontext_http_responses_total",
            "Responses by route and status",
            ("route", "status"),
            registry=self.registry,
        )

    def counter(self, measure: measures.Measure, *labels: str) -> Counter:
        return Counter(measure.name, measure.meaning, labels, registry=self.registry)

    def gauge(self, measure: measures.Measure, model: str) -> Gauge:
        return Gauge(measure.name, measure.meaning, ("model",), registry=self.registry).labels(model)

    def histogram(self, measure: measures.Measure, model: str) -> Histogram:
        made = Histogram(
            measure.name, measure.meaning, ("model",), buckets=measure.buckets, registry=self.registry
        )
        return made.labels(model)

    def edit(self, outcome: str, seconds: float) -> None:
        self.edits[outcome].inc()
        self.seconds.observe(seconds)

    def queued(self, change: int, seconds: float | None = None) -> None:
        self.queue_length.inc(change)
        if seconds is not None:
            self.queue_seconds.observe(seconds)

    def steps(self, rows: int) -> None:
        self.rows_stepped.inc(rows)

    def batch(self, rows: int) -> None:
        self.rows.observe(rows)

    def cache(self, embeddings: EmbeddingCache) -> None:
        for measure, kind, more in self.cache_counts.since_last(embeddings):
            self.cached[measure].labels(self.model, kind).inc(more)
        self.cached_bytes.set(embeddings.used)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
