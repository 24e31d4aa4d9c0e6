"""The interface between the pipeline and what runs a bundle's graphs; implement it to run them with something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class SamplerStep:
    """Which step of an edit a run of the transformer is: `index` counts from 0 to `count` - 1."""

    index: int
    count: int


class Backend(Protocol):
    """Runs the six graphs of one bundle. Only `runtime.pipeline.Pipeline` calls it, from one thread at a time.

    An edit calls, in this order (batch: the pictures sampled together):

        run  text_encoder                    once for each different prompt
        run  text_encoder_2                  once for each different prompt
        run  vae_encoder                     once for each different reference picture
        run  modulation                      once, all steps of all different prompts
        hold                                 what all steps share; then each step's modulations
        run  transformer                     once a step, with `step`
        run  vae_decoder                     once for each picture

    and, for each set of pictures of one size, repeats it from the modulation on. With `low_memory` the pipeline calls
    `release` for each graph as soon as the edit no longer needs it. What its `embedding_cache` has is not run.

    Inputs and outputs have the names, shapes and types of docs/bundle.md: fp32 arrays, int64 token ids.
    """

    def hold(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Prepares inputs that several runs share, such as by copying them to the device once.

        Returns:
            For each name what `run` takes in its place: any object of the backend's, or the array itself.
        """

    def run(
        self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None
    ) -> dict[str, NDArray[Any]]:
        """Runs a graph, and loads it first if it is not loaded.

        Args:
            graph: one of `bundle.GRAPHS`.
            inputs: name → array or held value; all of the graph's inputs.
            step: of the edit; given for the transformer only.

        Returns:
            Output name → fp32 array that belongs to the caller.

        Raises:
            KontextError: the graph cannot be loaded or run with these sizes here; says what would work.
        """

    def release(self, *graphs: str) -> None:
        """Frees what was loaded for these graphs; a graph that is not loaded is ignored. `run` may load it again."""


class ForwardingBackend:
    """Passes every call on to another backend. Subclass it to watch or change some of them."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def hold(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return self.backend.hold(arrays)

    def run(
        self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None
    ) -> dict[str, NDArray[Any]]:
        return self.backend.run(graph, inputs, step)

    def release(self, *graphs: str) -> None:
        self.backend.release(*graphs)
