"""One whole edit of a bundle, or its velocities in PyTorch, for the full-size edit benchmark:

    python -m kontext.bench.fullsize.edit_child edit BUNDLE BACKEND WxH STEPS RECORD
    python -m kontext.bench.fullsize.edit_child reference BUNDLE RECORD

The edit prints a line of JSON and leaves the transformer's inputs and velocities of two steps in RECORD (.npz), which
the reference reads. Each is a process of its own, because memory that earlier work leaves allocated would count.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ...runtime import OpenVINOOptions, Pipeline
from ...runtime.backends.protocol import Backend, ForwardingBackend, SamplerStep
from ..openvino_sides import OPENVINO
from ..peak_memory import anonymous_bytes, peak_bytes, reset_peak

PROMPT = "make the circle red"
RECORDED_STEPS = 2
VELOCITY = "velocity"


class Stages(ForwardingBackend):
    """Seconds and memory of each run (the peak, and without files' pages what is held after it), whether all outputs
    are finite, and what the first steps compute."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}
        self.anonymous: dict[str, int] = {}
        self.finite = True
        self.recorded: dict[str, np.ndarray] = {}
        self.held: dict[int, np.ndarray] = {}

    def hold(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        held = super().hold(arrays)
        self.held |= {id(held[name]): array for name, array in arrays.items()}
        return held

    def run(self, graph: str, inputs: Mapping[str, Any], step: SamplerStep | None = None) -> dict[str, Any]:
        reset_peak()
        start = time.perf_counter()
        outputs = super().run(graph, inputs, step)
        self.seconds.setdefault(graph, []).append(round(time.perf_counter() - start, 3))
        self.peaks[graph] = max(self.peaks.get(graph, 0), peak_bytes())
        self.anonymous[graph] = max(self.anonymous.get(graph, 0), anonymous_bytes())
        self.finite &= all(bool(np.isfinite(array).all()) for array in outputs.values())
        if step is not None and step.index < RECORDED_STEPS:
            for name, value in {**inputs, **outputs}.items():
                self.recorded[f"{step.index}/{name}"] = np.asarray(self.held.get(id(value), value))
        return outputs


def edit(bundle: str, backend: str, size: str, steps: str, record: str) -> dict[str, Any]:
    width, height = map(int, size.split("x"))
    options = OpenVINOOptions(compute=OPENVINO[backend]) if backend in OPENVINO else backend
    pipe = Pipeline.load(
        bundle, device="cpu" if backend == "onnxruntime" else "auto", backend=options, low_memory=True
    )
    pipe.backend = stages = Stages(pipe.backend)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    start = time.perf_counter()
    pipe.edit(PIL.Image.fromarray(pixels), PROMPT, steps=int(steps), size=(width, height))
    seconds = round(time.perf_counter() - start, 2)
    np.savez(record, **stages.recorded)  # type: ignore[arg-type]
    return {
        "seconds": seconds,
        "stages": stages.seconds,
        "peaks": stages.peaks,
        "anonymous": stages.anonymous,
        "finite": stages.finite,
    }


def reference(folder: str, record: str) -> dict[str, Any]:
    """The relative error of the recorded velocities against PyTorch in fp32 with the bundle's own weights, of which it
    holds one block's at a time."""
    import torch
    from torch import nn

    from ...model.transformer import Transformer
    from ...runtime.backends.torch.backend import read_config
    from ...runtime.bundle import Bundle
    from .checks import StoredNetwork

    bundle = Bundle.open(Path(folder))
    stored = StoredNetwork(bundle)
    with torch.device("meta"):
        network = Transformer(read_config(bundle).transformer).eval()

    def fill(module: nn.Module, path: str) -> None:
        state = {name: stored.read(f"{path}.{name}") for name in module.state_dict()}
        module.load_state_dict(state, assign=True)

    def empty(module: nn.Module) -> None:
        module.to("meta")

    blocks = ("double_blocks.", "single_blocks.")
    for path, module in network.named_modules():
        if path.startswith(blocks) and path.count(".") == 1:
            module.register_forward_pre_hook(lambda module, _inputs, path=path: fill(module, path))
            module.register_forward_hook(lambda module, _inputs, _output: empty(module))
        elif path and "." not in path and not isinstance(module, nn.ModuleList):
            fill(module, path)
    recorded = np.load(record)
    errors, seconds = [], []
    for index in range(len({name.split("/")[0] for name in recorded.files})):
        step = {name.split("/")[1]: recorded[name] for name in recorded.files if name.startswith(f"{index}/")}
        theirs = step.pop(VELOCITY).astype(np.float64)
        start = time.perf_counter()
        with torch.inference_mode():
            ours = network(**{name: torch.from_numpy(value).float() for name, value in step.items()}).numpy()
        seconds.append(round(time.perf_counter() - start, 2))
        errors.append(float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)))
    return {"relative_errors": errors, "seconds": seconds}


def main() -> int:
    what, *words = sys.argv[1:]
    print(json.dumps({"edit": edit, "reference": reference}[what](*words)))  # type: ignore[operator]
    return 0


if __name__ == "__main__":
    sys.exit(main())
