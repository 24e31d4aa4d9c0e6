"""The process that compiles engines: `python -m kontext.export.engines.compiler rtx|tensorrt`, jobs on stdin.

The compiler takes minutes, holds gigabytes and may crash: a separate process can be killed at once and frees all its
memory. Jobs are lines of JSON; progress and results are lines of JSON on stdout.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...child_process import end_with_parent
from ...errors import KontextError
from ...files import write_atomic
from ...runtime.cache import read_cached
from ...runtime.engines import load_library
from .fp4_quantization import constant_scales, use_fp4_quantizer
from .narrow_quantization import narrow_quantization
from .unscaled_products import unscaled_product

Send = Callable[[dict[str, Any]], None]
"""Sends a message to the process that started this one."""

HEARTBEAT = 0.1
"""Seconds between two messages about progress, at least."""

TIMING_CACHE_LIBRARY = "tensorrt"
"""TensorRT for RTX measures nothing while it builds, so its timing caches are empty."""


def main(arguments: list[str] | None = None) -> int:
    (library,) = sys.argv[1:] if arguments is None else arguments
    end_with_parent()
    # The compiler prints to stdout: messages get a copy of it, and stdout becomes stderr.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        try:
            built = build_engine(library, job, send)
        except KontextError as fault:
            send({"fault": str(fault)})
            continue
        built["seconds"] = round(time.perf_counter() - start, 2)
        built["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        send({"built": built})
    return 0


def build_engine(library: str, job: dict[str, Any], send: Send) -> dict[str, Any]:
    """Compiles one engine into the file `job["output"]`.

    Args:
        library: rtx or tensorrt.
        job: `graph` (the ONNX file), `target`, `weights` (see `runtime.engines.WEIGHTS`), `profiles` (for each input
            name three shapes), `decompose` (attention that has no single kernel may become several), `stream` (weights
            may stay in host memory), `timing_cache` (a file, or null).
        send: called with messages about progress.

    Raises:
        KontextError: the library refuses the graph; the message is the library's.
    """
    trt = load_library(library)
    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    weights = parse_graph(trt, network, log, Path(job["graph"]), job["weights"])
    if job["decompose"]:
        let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    set_target(trt, config, job["target"])
    set_weights(trt, network, config, job["weights"], weights, job["stream"])
    for shapes in job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in shapes.items():
            profile.set_shape(name, tuple(low), tuple(best), tuple(high))
        if config.add_optimization_profile(profile) < 0:
            raise KontextError(f"the library refuses a profile: {log.last()}")
    cache = load_timing_cache(library, config, job["timing_cache"])
    config.progress_monitor = make_monitor(trt, send)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise KontextError(log.last() or "the library gives no reason")
    if cache is not None:
        with contextlib.suppress(OSError):  # it only saves time
            write_with_folder(Path(job["timing_cache"]), memoryview(cache.serialize()))
    data = memoryview(plan)
    write_with_folder(Path(job["output"]), data)
    return {
        "size": data.nbytes,
        "sha256": hashlib.sha256(data).hexdigest(),
        "version": trt.__version__,
        "layers": network.num_layers,
        "weights": len(weights),
    }


def network_flags(trt: Any) -> int:
    """Strongly typed: every layer computes in the graph's number formats. TensorRT 11 has no other kind and no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parse_graph(trt: Any, network: Any, log: Any, graph: Path, weights: str) -> list[str]:
    """Fills the network from an ONNX file; returns the names of the weights that are external data."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    narrow_quantization(model.graph)
    if (product := unscaled_product(model.graph)) is not None:
        raise KontextError(
            f"{graph.name}: {product} leaves the range of fp16: the bundle is of an older version, export it again"
        )
    use_fp4_quantizer(model)
    parser = trt.OnnxParser(network, log)
    whole = model.SerializeToString()
    external = weights_as_inputs(model, graph.parent)
    if weights == "bound":
        parsed = parser.parse(model.SerializeToString())
    else:
        parsed = parser.parse(whole, str(graph))  # the path is for the external data
    if not parsed:
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        where = "; ".join(
            f"{fault.node_operator()} {fault.node_name()}: {fault.desc()}" for fault in faults[:2]
        )
        raise KontextError(f"the parser refuses {graph.name}: {where or log.last()}")
    return external


def weights_as_inputs(model: Any, folder: Path) -> list[str]:
    """Turns an ONNX model's external weights, in files relative to `folder`, into inputs; returns their names. Scales
    that TensorRT takes as constants only (`fp4_quantization.constant_scales`) are read and stay."""
    import onnx

    external, kept, constant = [], [], constant_scales(model.graph)
    for item in model.graph.initializer:
        if item.data_location == onnx.TensorProto.EXTERNAL and item.name in constant:
            read_external(item, folder)
            kept.append(item)
        elif item.data_location == onnx.TensorProto.EXTERNAL:
            value = onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
            model.graph.input.append(value)
            external.append(item.name)
        else:
            kept.append(item)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return external


def read_external(tensor: Any, folder: Path) -> None:
    """Puts the data of an external tensor into it."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        tensor.raw_data = file.read(int(place["length"]))
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def let_attention_decompose(trt: Any, network: Any) -> None:
    """Lets attention without a single kernel become several, as for fp32 and for heads of 512 channels."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionBoundaryLayer
            layer.attention.decomposable = True


def set_target(trt: Any, config: Any, target: str) -> None:
    """TensorRT for RTX compiles for any of its architectures, TensorRT for the GPU that it finds."""
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)


def set_weights(trt: Any, network: Any, config: Any, kind: str, weights: list[str], stream: bool) -> None:
    """Leaves the bundle's weights out of a stripped engine; `stream` lets weights in an engine stay in host memory."""
    if stream:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if kind == "stripped":
        # Only weights in the bundle's files are left out; the graph's small constants stay.
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        for name in weights:
            if not network.mark_weights_refittable(name):
                raise KontextError(f"the library cannot leave out the weight {name}")


def load_timing_cache(library: str, config: Any, path: str | None) -> Any:
    if library != TIMING_CACHE_LIBRARY or path is None:
        return None
    cache = config.create_timing_cache(read_cached(Path(path)))
    config.set_timing_cache(cache, ignore_mismatch=False)
    return config.get_timing_cache()


def make_logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Collects the library's errors."""

        def __init__(self) -> None:
            super().__init__()
            self.faults: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.faults.append(" ".join(message.split()))

        def last(self) -> str:
            """The last error without the library's prefix; "" if there was none."""
            text = self.faults[-1] if self.faults else ""
            return text.split(": ", 1)[-1] if text.startswith("IBuilder::") else text

    return Log()


def make_monitor(trt: Any, send: Send) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Sends the outermost phase's steps and the innermost phase's name; ends the build if nobody reads them."""

        def __init__(self) -> None:
            super().__init__()
            self.phases: dict[str, int] = {}
            self.outermost = ""
            self.step = 0
            self.last = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not self.phases:
                self.outermost, self.step = phase_name, 0
            self.phases[phase_name] = num_steps
            self.send_progress(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.outermost:
                self.step = step + 1
            return self.send_progress(phase_name)

        def send_progress(self, phase: str) -> bool:
            """Whether the build should go on."""
            now = time.monotonic()
            if now - self.last < HEARTBEAT:
                return True
            self.last = now
            try:
                send({"phase": phase, "step": self.step, "of": self.phases.get(self.outermost, 0)})
            except OSError:  # the process that wants the engine has ended
                return False
            return True

    return Monitor()


def write_with_folder(path: Path, data: memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


if __name__ == "__main__":
    sys.exit(main())
