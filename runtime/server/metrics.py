"""The metrics that `kontext_stream` adds to the server's: edits by outcome, their seconds, steps, batch sizes."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

OUTCOMES = ("ok", "invalid", "refused", "cancelled", "failed")
SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250]
ROWS = [1, 2, 4, 8, 16]


class Metrics:
    """Prometheus counters and histograms of one model, shared by its instances."""

    def __init__(self, model: str) -> None:
        family, labels = pb_utils.MetricFamily, {"model": model}
        self.families = {
            name: family(name=name, description=text, kind=kind)
            for name, text, kind in (
                ("kontext_edits_total", "Edits by outcome", family.COUNTER),
                ("kontext_steps_total", "Sampler steps, counted for every picture", family.COUNTER),
                (
                    "kontext_edit_seconds",
                    "Seconds from the start of an edit's batch to its last response",
                    family.HISTOGRAM,
                ),
                ("kontext_batch_rows", "Pictures sampled in one batch", family.HISTOGRAM),
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

    def edit(self, outcome: str, seconds: float) -> None:
        self.edits[outcome].increment(1)
        self.seconds.observe(seconds)

    def steps(self, rows: int) -> None:
        self.rows_stepped.increment(rows)

    def batch(self, rows: int) -> None:
        self.rows.observe(rows)
