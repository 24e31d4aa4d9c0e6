"""Traced graphs, kept by all that they depend on: tracing takes longer than writing a small model's weights, and every
checkpoint of one architecture has the same graphs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path

from ...files import write_atomic
from ...model.config import KontextConfig
from ...runtime.cache import cache_folder

LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir")
"""Whose versions a graph depends on."""

PACKAGES = ("export/graph", "model")
"""Of this project, whose code it depends on."""

DIGEST_BYTES = 32


def find(network: str, config: KontextConfig, compute: str) -> bytes | None:
    """What was kept of a network's graph; None where there is nothing, or it is damaged."""
    with contextlib.suppress(OSError):
        data = place(network, config, compute).read_bytes()
        digest, graph = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if hashlib.sha256(graph).digest() == digest:
            return graph
    return None


def keep(network: str, config: KontextConfig, compute: str, graph: bytes) -> None:
    """Keeps a graph for the next time, where that is possible."""
    path = place(network, config, compute)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(graph).digest() + graph)


def place(network: str, config: KontextConfig, compute: str) -> Path:
    sizes = {
        key: value for key, value in dataclasses.asdict(config).items() if key not in ("name", "sampler")
    }
    parts = json.dumps([network, compute, sizes, makers()], sort_keys=True)
    return cache_folder() / "graphs" / f"{hashlib.sha256(parts.encode()).hexdigest()}.onnx"


@functools.cache
def makers() -> list[str]:
    """Versions of the libraries, and a digest of our own code."""
    code = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((Path(__file__).resolve().parents[1] / package).glob("*.py")):
            code.update(path.name.encode() + path.read_bytes())
    return [*(importlib.metadata.version(name) for name in LIBRARIES), code.hexdigest()]
