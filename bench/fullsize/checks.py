"""The full-size benchmark's checks of a bundle: `python -m kontext.bench.fullsize.checks check|load|blocks BUNDLE`.

Each runs in a process of its own and prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...export.engines.compiler import weights_as_inputs
from ...runtime.bundle import Bundle

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.weights.plan import WeightPlan

TOKENS = 256
"""Target tokens, and reference tokens, in `compare_blocks`."""


def check_graphs(folder: Path) -> dict[str, object]:
    """Runs onnx.checker with strict shape inference on every graph; a linked graph's weights become inputs for that."""
    import onnx

    bundle = Bundle.open(folder)
    for entry in bundle.graphs.values():
        if bundle.links:
            model = onnx.load(entry.path, load_external_data=False)
            weights_as_inputs(model, entry.path.parent)
            onnx.checker.check_model(model, full_check=True)
        else:
            onnx.checker.check_model(str(entry.path), full_check=True)
    return {"graphs": len(bundle.graphs)}


def load_sessions(folder: Path) -> dict[str, object]:
    """Loads the transformer and the modulation into ONNX Runtime on the CPU; returns the seconds of each."""
    from ...runtime.backends.onnxruntime import OnnxRuntimeBackend

    bundle = Bundle.open(folder)
    backend = OnnxRuntimeBackend(
        {name: entry.path for name, entry in bundle.graphs.items()}, "cpu", read=bundle.graph_bytes
    )
    seconds = {}
    for name in ("modulation", "transformer"):
        start = time.perf_counter()
        backend.session(name)
        seconds[name] = round(time.perf_counter() - start, 2)
    return {"seconds": seconds}


def compare_blocks(folder: Path) -> dict[str, object]:
    """Runs the bundle's first double and first single block at full width in ONNX Runtime, and in PyTorch in fp32 with
    the same weights; returns the relative error of the velocity."""
    import onnxruntime
    import torch

    from ...export.graph import bind_weights, trace
    from ...model.config import AutoencoderConfig, ClipConfig, KontextConfig, T5Config, TransformerConfig
    from ...model.transformer import Transformer

    bundle = Bundle.open(folder)
    stated = bundle.manifest["model"]["transformer"]
    fields = {field.name: stated[field.name] for field in dataclasses.fields(TransformerConfig)}
    fields |= {"num_double_blocks": 1, "num_single_blocks": 1, "axes_dim": tuple(stated["axes_dim"])}
    small = TransformerConfig(**fields)
    config = KontextConfig("blocks", small, AutoencoderConfig(), ClipConfig(), T5Config())
    entry, stored = bundle.graphs["transformer"], StoredNetwork(bundle)
    probe = trace.trace_network("transformer", config, stored.compute)
    plan = stored.plan(list(probe.graph.initializers))
    bind_weights.bind(probe, {entry.weights.relative_to(folder).as_posix(): plan}, for_gpu=False)
    path = folder / "blocks.probe.onnx"
    path.write_bytes(bind_weights.serialize(probe))
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    finally:
        path.unlink()
    rng = np.random.default_rng(0)
    inputs = {
        node.name: rng.standard_normal([axis_size(dimension) for dimension in node.shape], np.float32)
        for node in session.get_inputs()
    }
    angles = rng.uniform(-np.pi, np.pi, inputs["rope_cos"].shape).astype(np.float32)
    inputs |= {"rope_cos": np.cos(angles), "rope_sin": np.sin(angles)}
    inputs |= {name: 0.2 * value for name, value in inputs.items() if name.endswith("modulation")}
    start = time.perf_counter()
    ours = session.run(None, inputs)[0]
    seconds = time.perf_counter() - start
    del session
    network = Transformer(small).eval()
    network.load_state_dict({name: stored.read(name) for name in network.state_dict()})
    with torch.inference_mode():
        theirs = network(*(torch.from_numpy(inputs[name]) for name in inputs)).numpy()
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    return {
        "relative_error": error,
        "seconds": round(seconds, 2),
        "tokens": 2 * TOKENS + inputs["text"].shape[1],
    }


def axis_size(dimension: int | str) -> int:
    """The size of an axis of the inputs: batch 1, as many reference tokens as target tokens."""
    if isinstance(dimension, int):
        return dimension
    sizes = {"batch": 1, "target_tokens": TOKENS, "reference_tokens": TOKENS, "text_tokens": 512}
    return sum(sizes[part.strip()] for part in dimension.split("+"))


class StoredNetwork:
    """The transformer's weights as the bundle stores them, described by the file's header and the manifest."""

    def __init__(self, bundle: Bundle) -> None:
        from ...model.safetensors_file import open_safetensors
        from ...quant.recipe import Layer

        precision = bundle.manifest["precision"]
        self.tensors = open_safetensors(bundle.graphs["transformer"].weights).tensors
        self.compute: str = precision["networks"]["transformer"]
        quantized = precision["layers"].get("transformer", {})
        self.layers = {name: Layer.from_json(entry) for name, entry in quantized.items()}

    def tensor_names(self, name: str) -> list[str]:
        """Names of the tensors that store a weight."""
        from ...quant.weight_layout import weight_layout

        if name not in self.layers:
            return [name]
        return [name + ending for ending, *_ in weight_layout(self.layers[name], (1 << 10, 2))]

    def plan(self, wanted: list[str]) -> WeightPlan:
        """A plan of the stored weights among `wanted`, for `bind_weights.bind`."""
        from ...export.weights.plan import PlannedWeight, WeightPlan
        from ...quant.recipe import Layer
        from ...safetensors_header import TensorEntry

        items = []
        for name in (name for name in wanted if name in self.tensors):
            parts = tuple(
                TensorEntry(part, info.dtype, info.shape, info.start, info.stop)
                for part in self.tensor_names(name)
                for info in [self.tensors[part]]
            )
            items.append(PlannedWeight(name, self.layers.get(name, Layer(self.compute)), False, parts))
        return WeightPlan("transformer", self.compute, b"", tuple(items), {}, {})

    def read(self, name: str) -> Tensor:
        """A weight in fp32 as PyTorch stores it: dequantized, linears [out, in]."""
        from ...quant.quantize import dequantize_weight

        stored = [self.tensors[part].read() for part in self.tensor_names(name)]
        value = dequantize_weight(stored, self.layers[name]) if name in self.layers else stored[0].float()
        return value.t() if value.ndim == 2 else value


def main() -> int:
    what, folder = sys.argv[1:]
    result = {"check": check_graphs, "load": load_sessions, "blocks": compare_blocks}[what](Path(folder))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
