"""Traces graphs in child processes while the exporter works on the weights: `python -m kontext.export.graph.workers`.

Not in threads: tracing is Python code, and changes PyTorch's defaults for the whole process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from ...child_process import end_with_parent, module_command
from ...model.config import CONFIG_CLASSES, KontextConfig, config_from_json
from ...temporary_folder import temporary_folder
from .cache import cache_graph, find_graph
from .trace import trace_network

FIRST_SHARE = ("transformer", "vae_decoder", "pipeline_transformer", "pipeline_vae_decoder")
"""They take about as long as all others together, so they are traced in a process of their own."""

UNBOUND = "unbound"
"""The external file of weights in a graph that is passed between processes: ONNX has no tensor without data."""


class Tracers:
    """Up to two processes that trace the graphs of `networks` that are not cached; they end with the context.

    Args:
        networks: names, each once.
        config: the model's sizes.
        compute: network → number format that it computes in.
    """

    def __init__(self, networks: Sequence[str], config: KontextConfig, compute: Mapping[str, str]) -> None:
        self.config = config
        self.compute = compute
        self.cached = {name: find_graph(name, config, compute[name]) for name in networks}
        new = [name for name in networks if self.cached[name] is None]
        shares = (
            [name for name in new if name in FIRST_SHARE],
            [name for name in new if name not in FIRST_SHARE],
        )
        self.shares = [share for share in shares if share]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Tracers:
        self.folder = self.stack.enter_context(temporary_folder("graphs"))
        for share in self.shares:
            self.processes.update(dict.fromkeys(share, self.start(share)))
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.stack.close()

    def start(self, networks: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            module_command(__spec__.name, str(self.folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C goes to the exporter alone, which ends this process
        )
        request = {
            "compute": {name: self.compute[name] for name in networks},
            "name": self.config.name,
            **{part: dataclasses.asdict(getattr(self.config, part)) for part in CONFIG_CLASSES},
        }
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(json.dumps(request).encode())
        return process

    def result(self, network: str) -> ir.Model:
        """Waits for the graph of `network`, as `trace_network` returns it.

        Raises:
            RuntimeError: it could not be traced (a bug), or the system ended its process.
        """
        cached = self.cached[network]
        if cached is not None:
            return unpack_graph(cached)
        path, process = self.folder / f"{network}.onnx", self.processes[network]
        assert process.stdout is not None
        while not path.exists():
            if not process.stdout.readline() and not path.exists():
                raise RuntimeError(f"tracing the graph of {network} ended with exit code {process.wait()}")
        graph = path.read_bytes()
        cache_graph(network, self.config, self.compute[network], graph)
        return unpack_graph(graph)


def pack_graph(model: ir.Model) -> bytes:
    """A traced graph as an ONNX file, with its weights in the file `UNBOUND`, which does not exist."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.dtype is not None
            value.const_value = ir.ExternalTensor(
                UNBOUND, None, None, value.dtype, shape=ir.Shape(value.shape or ()), name=name, base_dir=""
            )
    return ir.to_proto(model).SerializeToString(deterministic=True)


def unpack_graph(data: bytes) -> ir.Model:
    """The inverse of `pack_graph`."""
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None
    return model


def main() -> None:
    """Traces the networks of the request on stdin into the folder argument; prints the name of each finished one."""
    end_with_parent()
    gc.disable()  # takes a tenth of the time: millions of small objects, and nearly all live as long as the process
    request, folder = json.load(sys.stdin), Path(sys.argv[1])
    parts = {part: config_from_json(part, request[part]) for part in CONFIG_CLASSES}
    config = KontextConfig(name=request["name"], **parts)
    for network, compute in request["compute"].items():
        path = folder / f"{network}.onnx"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(pack_graph(trace_network(network, config, compute)))
        unfinished.rename(path)
        print(network, flush=True)


if __name__ == "__main__":
    main()
