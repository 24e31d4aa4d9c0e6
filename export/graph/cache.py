"""A cache of traced graphs: every checkpoint of one architecture has the same graphs, and tracing takes longer than
writing a small model's weights. An entry's name is a digest of everything that the graph depends on.
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
"""Libraries whose versions a graph depends on."""

PACKAGE = Path(__file__).resolve().parents[2]
FOLDERS = ("export/graph", "model")
"""Folders of this package whose code a graph depends on."""

DIGEST_BYTES = 32


def find_graph(network: str, config: KontextConfig, compute: str) -> bytes | None:
    """The cached graph of a network, or None if there is none or its file is damaged."""
    with contextlib.suppress(OSError):
        data = graph_path(network, config, compute).read_bytes()
        digest, graph = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if hashlib.sha256(graph).digest() == digest:
            return graph
    return None


def cache_graph(network: str, config: KontextConfig, compute: str, graph: bytes) -> None:
    """Writes a graph to the cache, if that can be written."""
    path = graph_path(network, config, compute)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(graph).digest() + graph)


def graph_path(network: str, config: KontextConfig, compute: str) -> Path:
    sizes = {
        key: value for key, value in dataclasses.asdict(config).items() if key not in ("name", "sampler")
    }
    parts = json.dumps([network, compute, sizes, library_versions(), code_digest()], sort_keys=True)
    return cache_folder() / "graphs" / f"{hashlib.sha256(parts.encode()).hexdigest()}.onnx"


@functools.cache
def library_versions() -> list[str]:
    return [importlib.metadata.version(name) for name in LIBRARIES]


@functools.cache
def code_digest() -> str:
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
