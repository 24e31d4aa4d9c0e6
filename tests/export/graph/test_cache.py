"""The cache of traced graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.export.graph import cache
from kontext.model.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_graph_is_found_only_for_what_it_was_traced_from(tiny_checkpoint: Path) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    cache.cache_graph("modulation", config, "fp32", b"a graph")
    assert cache.find_graph("modulation", dataclasses.replace(config, name="other"), "fp32") == b"a graph"
    wider = dataclasses.replace(config.transformer, hidden_size=2 * config.transformer.hidden_size)
    assert cache.find_graph("modulation", dataclasses.replace(config, transformer=wider), "fp32") is None
    assert cache.find_graph("modulation", config, "bf16") is None
    assert cache.find_graph("transformer", config, "fp32") is None
    path = cache.graph_path("modulation", config, "fp32")
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.find_graph("modulation", config, "fp32") is None


def test_a_graph_depends_on_the_code_that_traces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = [path for folder in cache.FOLDERS for path in (cache.PACKAGE / folder).rglob("*.py")]
    assert {"trace.py", "blocks.py", "transformer.py"} <= {path.name for path in code}
    before = cache.code_digest.__wrapped__()
    original = Path.read_bytes

    def changed(path: Path) -> bytes:
        return original(path) + (b"#" if path.name == "transformer.py" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert cache.code_digest.__wrapped__() != before
