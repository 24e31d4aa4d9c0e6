"""A backend whose graphs are models of the server: each run is a request inside the server.

Used instead of the runtime's own sessions if the repository was made for the server's ONNX Runtime backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ..backends.protocol import SamplerStep
from ..bundle import OUTPUTS


class ServerGraphs:
    """The graphs of a bundle as the server's models `PREFIX_GRAPH`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def hold(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(arrays)

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        """As `Backend.run`. Raises RuntimeError with the server's message if the model fails."""
        request = pb_utils.InferenceRequest(
            model_name=f"{self.prefix}_{graph}",
            requested_output_names=list(OUTPUTS[graph]),
            inputs=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(f"{graph}: {response.error().message()}")
        # The server frees the arrays' memory together with the response.
        return {tensor.name(): tensor.as_numpy().copy() for tensor in response.output_tensors()}

    def release(self, *graphs: str) -> None:
        """Does nothing: the server decides how long its models stay loaded."""
