"""A backend that measures how long each network runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from .protocol import Backend, ForwardingBackend, SamplerStep


class TimedBackend(ForwardingBackend):
    """Passes calls on and adds up each network's seconds in `seconds`; loading it counts to its first run."""

    def __init__(self, backend: Backend, seconds: dict[str, float]) -> None:
        super().__init__(backend)
        self.seconds = seconds

    def run(
        self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None
    ) -> dict[str, NDArray[Any]]:
        started = time.perf_counter()
        try:
            return super().run(graph, inputs, step)
        finally:
            self.seconds[graph] = self.seconds.get(graph, 0) + time.perf_counter() - started
