"""An importance matrix for ggml's quantizers, as llama.cpp calls it: the mean square of each input of each linear, from
our own calibration of the embedded model."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from torch import Tensor

from ...export.bundle.manifest import build_manifest
from ...export.bundle.tokenizer_files import read_tokenizers
from ...export.calibration.calibrate import calibrate
from ...export.calibration.samples import scene_samples
from ...export.cli.source_flags import EMBEDDED
from ...export.progress import Progress
from ...model.checkpoint import Checkpoint
from ...quant.recipe import ANY_QUANTIZED, choose_recipe
from ...runtime.bundle import Bundle

Importance = Mapping[tuple[str, str], Tensor]
"""(graph, weight) → fp32 [in]."""


def why_unavailable(reference: Bundle) -> str | None:
    """Why there is no importance matrix for a bundle, in words; None if it is the embedded model's."""
    if not (EMBEDDED / "model_index.json").exists():
        return "this installation has no embedded model"
    checkpoint = Checkpoint.open(EMBEDDED)
    networks = tuple(checkpoint.networks)
    recipe = choose_recipe(networks, checkpoint.parameters(), "fp32")
    manifest = build_manifest(checkpoint, recipe, read_tokenizers(checkpoint), {})
    if json.loads(json.dumps(manifest["model"])) != reference.manifest["model"]:
        return f"only the embedded model is calibrated here, and {reference.folder} is another one"
    return None


@functools.cache
def embedded_importance() -> Importance:
    """Of every linear that an export quantizes; calibrates in half a minute unless an export has done so before."""
    checkpoint = Checkpoint.open(EMBEDDED)
    recipe = choose_recipe(tuple(checkpoint.networks), checkpoint.parameters(), "fp32", ANY_QUANTIZED)
    statistics = calibrate(checkpoint, recipe, read_tokenizers(checkpoint), scene_samples(), Progress(False))
    return {
        (graph, weight): each.mean_square()
        for graph, layers in statistics.inputs.items()
        for weight, each in layers.items()
        if each.moments is not None
    }
