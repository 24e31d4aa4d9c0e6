"""What calibration says of the inputs of the transformer's linears: an importance matrix, as llama.cpp calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...model.checkpoint import Checkpoint
from ...model.networks import NETWORKS
from ...quant.recipe import ANY_QUANTIZED, SPARED, Recipe, Rule, choose_recipe
from ..bundle.tokenizer_files import read_tokenizers
from ..edit_sets.samples import Samples
from ..progress import Progress

if TYPE_CHECKING:
    from ...quant.statistics import Statistics


def watched(checkpoint: Checkpoint) -> Recipe:
    """A recipe that quantizes what layouts do: the blocks of the transformer, with their modulation."""
    compute = choose_recipe(tuple(NETWORKS), checkpoint.parameters(), None).compute
    networks = [network for network, component in NETWORKS.items() if component == "transformer"]
    return Recipe("importance", compute, (*SPARED, *(Rule(each, "*", ANY_QUANTIZED) for each in networks)))


def measure(checkpoint: Checkpoint, samples: Samples, progress: Progress) -> Statistics:
    """The statistics of these inputs over all steps of the samples' edits; as `calibrate`, which keeps them.

    Raises:
        KontextError: an input is NaN or infinite.
    """
    from ..calibration.calibrate import calibrate

    return calibrate(checkpoint, watched(checkpoint), read_tokenizers(checkpoint), samples, progress)
