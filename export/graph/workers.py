"""Traces graphs in processes of their own, while the exporter writes weights: `python -m kontext.export.graph.workers`.

Tracing is Python and switches PyTorch's defaults for a whole process, so threads would do neither side good.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from ...model.config import PARTS, KontextConfig, part_from_json
from . import cache, trace

LONGEST = "transformer"
"""Takes about as long as all others together, and has a process to itself."""

NOWHERE = "unbound"
"""The file that weights are said to be in while a graph travels: ONNX has no word for one without data."""


class Tracers:
    """Two processes that trace those graphs of `networks` that are not kept; a context that leaves none behind.

    Args:
        networks: names; none of them twice.
        config: the model's sizes.
        compute: network → number format that it computes in.
    """

    def __init__(self, networks: Sequence[str], config: KontextConfig, compute: Mapping[str, str]) -> None:
        self.config = config
        self.compute = compute
        self.kept = {name: cache.find(name, config, compute[name]) for name in networks}
        new = [name for name in networks if self.kept[name] is None]
        shares = [name for name in new if name == LONGEST], [name for name in new if name != LONGEST]
        self.shares = [share for share in shares if share]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Tracers:
        self.folder = tempfile.TemporaryDirectory(prefix="kontext-graphs-")
        for share in self.shares:
            self.processes.update(dict.fromkeys(share, self.start(share)))
        return self

    def __exit__(self, *fault: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.folder.cleanup()

    def start(self, networks: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, self.folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the exporter's to answer, which ends this process
        )
        asked = {
            "compute": {name: self.compute[name] for name in networks},
            "name": self.config.name,
            **{part: dataclasses.asdict(getattr(self.config, part)) for part in PARTS},
        }
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(json.dumps(asked).encode())
        return process

    def result(self, network: str) -> ir.Model:
        """The graph of `network` as `graphs.trace` returns it, as soon as it is there.

        Raises:
            RuntimeError: it could not be traced: a fault of this program, or the system ended its process.
        """
        kept = self.kept[network]
        if kept is not None:
            return unpack(kept)
        path, process = Path(self.folder.name) / f"{network}.onnx", self.processes[network]
        assert process.stdout is not None
        while not path.exists():
            if not process.stdout.readline() and not path.exists():
                raise RuntimeError(f"tracing the graph of {network} ended with exit code {process.wait()}")
        graph = path.read_bytes()
        cache.keep(network, self.config, self.compute[network], graph)
        return unpack(graph)


def pack(model: ir.Model) -> bytes:
    """A traced graph as an ONNX file, its weights said to be `NOWHERE`."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.dtype is not None
            value.const_value = ir.ExternalTensor(
                NOWHERE, None, None, value.dtype, shape=ir.Shape(value.shape or ()), name=name, base_dir=""
            )
    return ir.to_proto(model).SerializeToString(deterministic=True)


def unpack(data: bytes) -> ir.Model:
    """The inverse of `pack`."""
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None
    return model


def main() -> None:
    """Traces what stdin asks for into the folder of the command line; a line on stdout for each that is there."""
    gc.disable()  # a process of seconds whose millions of small objects live as long as it does: a tenth of its time
    asked, folder = json.load(sys.stdin), Path(sys.argv[1])
    parts = {part: part_from_json(part, asked[part]) for part in PARTS}
    config = KontextConfig(name=asked["name"], **parts)
    for network, compute in asked["compute"].items():
        path = folder / f"{network}.onnx"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(pack(trace.trace(network, config, compute)))
        unfinished.rename(path)
        print(network, flush=True)


if __name__ == "__main__":
    main()
