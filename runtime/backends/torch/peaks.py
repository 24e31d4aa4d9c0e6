"""Peak GPU memory of one edit with the torch backend, by the planner's arithmetic (`quant.memory`), before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from ....quant.memory import CUDA, Workload, demands
from ...bundle import Bundle
from .advice import offloaded, streamed, tensor_bytes
from .backend import read_config


@dataclass(frozen=True)
class Peaks:
    """Bytes, those of the driver and the libraries included: with every network whole on the GPU in its turn, and with
    `TorchOptions(offload=True)`."""

    whole: int
    offloaded: int


def predict_peaks(bundle: Bundle, references: int = 1) -> Peaks:
    """Of an edit at the model's square size, as it is planned with `--fit`.

    Raises:
        KontextError: the manifest lacks the networks' sizes.
    """
    config, compute = read_config(bundle), bundle.manifest["precision"]["networks"]
    side = config.autoencoder.sample_size
    needs = demands(config, dict(compute), Workload(side, side, references), CUDA)
    whole, least = [], []
    for graph in bundle.graphs:
        weights = tensor_bytes(bundle, graph)
        held = offloaded(weights) if graph == "transformer" else streamed(config, graph, weights)
        whole.append(needs[graph].bytes + sum(weights.values()))
        least.append(needs[graph].bytes + held)
    return Peaks(max(whole), max(least))
