"""A library that fails on a graph, or skips a product of it, is a line that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("diffusers")

from kontext.bench.fidelity.network_peers.answering import Answer
from kontext.bench.fidelity.network_peers.graphs import Graph, GraphMethod, example_inputs, open_graphs
from kontext.errors import KontextError

if TYPE_CHECKING:
    from .conftest import Edit


def fail(graph: Graph) -> tuple[Answer, dict[str, int]]:
    raise RuntimeError("no such operator\nsee the log")


def skip_one(graph: Graph) -> tuple[Answer, dict[str, int]]:
    return lambda inputs: {}, dict.fromkeys(list(graph.products)[1:], 8)


def test_failures_name_the_graph_and_the_layer(edit: Edit) -> None:
    for quantize, message in (
        (fail, "lib-x cannot quantize the graph .*: no such operator$"),
        (skip_one, r"lib-x cannot quantize \w+: .*weight: it leaves it as it is"),
    ):
        method = GraphMethod(lambda: None, quantize)
        with pytest.raises(KontextError, match=message):
            open_graphs("lib-x", method, edit.bundle, edit.backend, edit.layers)


@pytest.mark.usefixtures("short_calibration")
def test_examples_are_the_inputs_of_all_steps(edit: Edit) -> None:
    found = example_inputs(edit.bundle, edit.backend, ["transformer", "modulation"])
    assert [len(found[graph]) for graph in ("transformer", "modulation")] == [2, 1]
    first, second = found["transformer"]
    assert first["target"].shape[0] == 2
    assert not np.array_equal(first["target"], second["target"])
    assert np.array_equal(first["text"], second["text"])
