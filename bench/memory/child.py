"""Peak memory of each stage of one edit: `python -m kontext.bench.memory.child BUNDLE WxH STEPS`.

Runs in a process of its own, because memory that earlier work leaves allocated would count. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from ...runtime import Pipeline
from ...runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from ..peak_memory import peak_bytes, reset_peak

PROMPT = "make the circle red"


class Peaks(ForwardingBackend):
    """A backend that records the peak of resident memory while each graph is loaded and run."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.peaks: dict[str, int] = {}

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        reset_peak()
        outputs = super().run(graph, inputs, step)
        self.peaks[graph] = max(self.peaks.get(graph, 0), peak_bytes())
        return outputs


def main() -> int:
    bundle, size, steps = sys.argv[1:]
    width, height = map(int, size.split("x"))
    pipe = Pipeline.load(bundle, device="cpu", low_memory=True)
    pipe.backend = peaks = Peaks(pipe.backend)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pipe.edit(PIL.Image.fromarray(pixels), PROMPT, steps=int(steps), size=(width, height))
    print(json.dumps(peaks.peaks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
