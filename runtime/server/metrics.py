"""What `kontext_stream` adds to the server's own metrics: edits by outcome, their seconds, steps, rows of batches."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

OUTCOMES = ("ok", "invalid", "refused", "cancelled", "failed")
SECONDS = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250]
ROWS = [1, 2, 4, 8, 16]


class Metrics:
    """Counters and histograms of one model, in Prometheus' names; instances of a model add to the same ones."""

    def __init__(self, model: str) -> None:
        family, labels = pb_utils.MetricFamily, {"model": model}
        self.families = {
            name: family(name=name, description=text, kind=kind)
            for name, text, kind in (
                ("kontext_edits_total", "Edits by how they ended", family.COUNTER),
                ("kontext_steps_total", "Sampler steps, each counted once for every picture", family.COUNTER),
                ("kontext_edit_seconds", "From the request's batch to its last response", family.HISTOGRAM),
                ("kontext_batch_rows", "Pictures that were sampled together", family.HISTOGRAM),
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
