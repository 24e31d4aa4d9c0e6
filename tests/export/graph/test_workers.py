"""Graphs that were traced in another process against graphs traced in this one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.export.graph import trace
from kontext.export.graph.bind_weights import serialize
from kontext.export.graph.workers import Tracers, pack_graph, unpack_graph
from kontext.model.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("network", ["modulation", "text_encoder_2"])
def test_another_process_traces_the_same_graph(tiny_checkpoint: Path, network: str) -> None:
    """T5 has a table of constants in addition to its weights."""
    config = Checkpoint.open(tiny_checkpoint).config
    expected = trace.trace_network(network, config, "bf16")
    weights = {
        name: (value.dtype, value.shape)
        for name, value in expected.graph.initializers.items()
        if value.const_value is None
    }
    with Tracers([network], config, {network: "bf16"}) as tracers:
        found = tracers.result(network)
    again = unpack_graph(pack_graph(found))
    found = unpack_graph(pack_graph(again))
    unbound = {name: value for name, value in found.graph.initializers.items() if value.const_value is None}
    assert {name: (value.dtype, value.shape) for name, value in unbound.items()} == weights
    for name in weights:
        del expected.graph.initializers[name], found.graph.initializers[name]
    assert serialize(found) == serialize(unpack_graph(pack_graph(expected)))
    with Tracers([network], config, {network: "bf16"}) as tracers:
        assert not tracers.processes  # the graph was kept
        assert pack_graph(tracers.result(network)) == pack_graph(again)


def test_a_fault_in_the_other_process(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    with Tracers(["no network"], config, {"no network": "fp32"}) as tracers:
        with pytest.raises(RuntimeError, match="no network ended with exit code 1"):
            tracers.result("no network")
    assert "no network is called" in capfd.readouterr().err


def test_no_process_is_left_behind(tiny_checkpoint: Path) -> None:
    config = Checkpoint.open(tiny_checkpoint).config
    with Tracers(
        ["transformer", "modulation"], config, dict.fromkeys(["transformer", "modulation"], "fp32")
    ) as tracers:
        started = set(tracers.processes.values())
        assert len(started) == 2
    for process in started:
        assert process.returncode == -signal.SIGKILL  # ended, and not waited for until its graphs are done
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
    assert not Path(tracers.folder.name).exists()
