"""A backend that answers some of a bundle's graphs with other code, and passes the rest on to the reference's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep

Arrays = Mapping[str, NDArray[Any]]
Answer = Callable[[Arrays], dict[str, NDArray[Any]]]
"""Runs one graph: its inputs by name → its outputs by name, as docs/bundle.md has them."""


class AnsweringBackend(ForwardingBackend):
    """Runs each graph of `answers` with its function, all others with `backend`."""

    def __init__(self, backend: Backend, answers: Mapping[str, Answer]) -> None:
        super().__init__(backend)
        self.answers = answers

    def hold(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The arrays themselves: the functions take nothing else, and so does `backend` (it held none)."""
        return dict(arrays)

    def run(
        self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None
    ) -> dict[str, NDArray[Any]]:
        if graph not in self.answers:
            return super().run(graph, inputs, step)
        outputs = self.answers[graph]({name: np.asarray(value) for name, value in inputs.items()})
        return {name: np.asarray(value, np.float32) for name, value in outputs.items()}

    def release(self, *graphs: str) -> None:
        super().release(*(graph for graph in graphs if graph not in self.answers))
