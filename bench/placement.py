"""What ONNX Runtime's CUDA provider makes of bundles: which graphs load, which heavy operators it leaves to the CPU.

Nothing is computed, so stub CUDA libraries serve: `kontext-bench fake-gpu --library onnxruntime -- kontext-bench
placement BUNDLE…`.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import KontextError
from ..runtime.backends.onnxruntime import PROVIDERS, OnnxRuntimeBackend, cuda_failure
from ..runtime.backends.onnxruntime_library import first_line
from ..runtime.backends.placement import CPU, RECORD, heavy_on_cpu, placed_operators
from ..runtime.bundle import Bundle
from ..runtime.cuda_driver import find_gpu
from .report import Table, finish

WARNINGS = 2
"""Log level at which ONNX Runtime reports the copies that it inserts."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 if a graph cannot be loaded or has heavy operators on the CPU."""
    import onnxruntime

    if PROVIDERS["cuda"][0] not in onnxruntime.get_available_providers():
        raise KontextError(
            f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider: install onnxruntime-gpu"
        )
    if find_gpu() is None:
        raise KontextError(
            "there is no NVIDIA GPU with a working driver: run it as kontext-bench fake-gpu --library onnxruntime -- "
            "kontext-bench placement BUNDLE"
        )
    bundles = [Bundle.open(folder) for folder in arguments.bundles]
    result = {
        "what": "placement",
        "onnxruntime": onnxruntime.__version__,
        "bundles": {bundle.folder.name: place(bundle) for bundle in bundles},
    }
    finish(result, tables(result), footer(result), arguments.json)
    graphs = [graph for entry in result["bundles"].values() for graph in entry.values()]
    return int(any(graph.get("error") or graph.get("heavy_on_cpu") for graph in graphs))


def place(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Graph → `error` if it cannot be loaded, else `on_cpu` (operator → count, those of shapes included),
    `heavy_on_cpu`, and `copies` between host and device in each run."""
    return {name: place_graph(bundle, name) for name in bundle.graphs}


def place_graph(bundle: Bundle, graph: str) -> dict[str, Any]:
    import onnxruntime

    graphs = {name: entry.path for name, entry in bundle.graphs.items()}
    backend = OnnxRuntimeBackend(graphs, "cuda", read=bundle.graph_bytes, files=bundle.linked_files)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = WARNINGS
    options.add_session_config_entry(*RECORD)
    with captured_stderr() as log:
        try:
            session = onnxruntime.InferenceSession(str(graphs[graph]), options, providers=backend.providers())
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            return {"error": cuda_failure(error) or first_line(error)}
    placed = placed_operators(session)
    copies = [int(found[1]) for found in re.finditer(r"(\d+) Memcpy nodes are added", "".join(log))]
    return {
        "on_cpu": dict(sorted(placed.get(CPU, Counter()).items())),
        "heavy_on_cpu": heavy_on_cpu(placed),
        "copies": sum(copies),
    }


@contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """What the process writes to stderr meanwhile, C++ included, in a list that is filled at the end."""
    lines: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines.append(file.read())


def tables(result: dict[str, Any]) -> Sequence[Table]:
    rows = []
    for name, graphs in result["bundles"].items():
        refused = [graph for graph, entry in graphs.items() if "error" in entry]
        heavy = [graph for graph, entry in graphs.items() if entry.get("heavy_on_cpu")]
        step = graphs["transformer"].get("copies")
        rows.append(
            (
                name,
                "all" if not refused else f"all but {', '.join(refused)}",
                ", ".join(heavy) or "none",
                "-" if step is None else str(step),
            )
        )
    return [Table(("bundle", "graphs that load", "heavy operators on the CPU in", "copies in a step"), rows)]


def footer(result: dict[str, Any]) -> str:
    return (
        f"ONNX Runtime {result['onnxruntime']}'s CUDA provider. Nodes were placed, nothing was computed; copies are "
        "those between host and device that ONNX Runtime inserts into the transformer."
    )
