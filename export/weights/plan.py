"""Plans the safetensors file of a network's weights; `convert` makes its tensors, `write` writes it.

`plan_weights` fixes every tensor's place before any weight is read, so graphs can refer to a file that is still being
written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import KontextError
from ...model.checkpoint import NetworkWeights
from ...model.stored_dtypes import STORED_DTYPES, TORCH_NAMES
from ...quant.formats import COMPUTE, FORMATS
from ...quant.recipe import Layer, Recipe
from ...quant.weight_layout import weight_layout
from ...safetensors_header import TensorEntry, make_header

if TYPE_CHECKING:
    from torch import Tensor

    from ...quant.statistics import InputStatistics

UnplacedTensor = tuple[str, str, tuple[int, ...]]
"""A tensor that has no place yet: name, format as safetensors names it, shape."""


@dataclass(frozen=True)
class PlannedWeight:
    """The stored tensors of one weight: the weight itself, or quantized values, scales and others, as `layer` says.

    `layer` is None for a constant. With `transpose`, the weight is stored as [in, out].
    """

    weight: str
    layer: Layer | None
    transpose: bool
    tensors: tuple[TensorEntry, ...]

    @property
    def size(self) -> int:
        return self.tensors[-1].stop - self.tensors[0].start


@dataclass(frozen=True)
class WeightPlan:
    """A file before it is written: its header's bytes, then its tensors in order.

    `compute` is the format that the network computes in. `constants` are tables that are not weights; `statistics` are
    those of the weights' inputs, by weight.
    """

    network: str
    compute: str
    header: bytes
    items: tuple[PlannedWeight, ...]
    constants: dict[str, Tensor]
    statistics: Mapping[str, InputStatistics]

    @property
    def size(self) -> int:
        return self.items[-1].tensors[-1].stop if self.items else len(self.header)

    def tensors(self) -> dict[str, TensorEntry]:
        return {tensor.name: tensor for item in self.items for tensor in item.tensors}


def plan_weights(
    network: NetworkWeights,
    recipe: Recipe,
    linears: set[str],
    constants: dict[str, Tensor],
    linked: Collection[str] = (),
    statistics: Mapping[str, InputStatistics] | None = None,
) -> WeightPlan:
    """Lays out a network's file: constants first, then the weights in the network's order.

    Args:
        network: names and shapes.
        recipe: decides every weight's format.
        linears: weights to store as [in, out].
        constants: tables that the graph needs and the checkpoint lacks.
        linked: weights that stay in the checkpoint's own files.
        statistics: weight → calibration's statistics of its inputs.
    """
    compute = recipe.compute[network.name]
    listed: list[tuple[str, Layer | None, bool, list[UnplacedTensor]]] = []
    names = {f"torch.{name}": stored for stored, name in TORCH_NAMES.items()}
    for name, tensor in constants.items():
        listed.append((name, None, False, [(name, names[str(tensor.dtype)], tuple(tensor.shape))]))
    for name, shape in network.shapes.items():
        if name in linked:
            continue
        transpose = name in linears
        stored = shape[::-1] if transpose else shape
        layer = recipe.layer_of(network.name, name, stored, transpose)
        listed.append((name, layer, transpose, stored_entries(name, stored, layer, compute)))
    header, places = make_header(entry for *_, entries in listed for entry in entries)
    items = tuple(
        PlannedWeight(weight, layer, transpose, tuple(places[name] for name, *_ in entries))
        for weight, layer, transpose, entries in listed
    )
    return WeightPlan(network.name, compute, header, items, constants, statistics or {})


def check_reached(plans: Iterable[WeightPlan]) -> None:
    """Raises KontextError, with their names, for linears whose inputs are to be rounded as calibration found them and
    that it never ran."""
    missing = []
    for plan in plans:
        for item in plan.items:
            layer, found = item.layer, plan.statistics.get(item.weight)
            wanted = layer is not None and (layer.centred or layer.scaled or layer.has_input_scale)
            if wanted and (found is None or not found.rows):
                missing.append(f"{plan.network} {item.weight}")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise KontextError(
            f"calibration never reached {', '.join(missing[:3])}{more}, so there are no scales for their inputs: "
            "calibrate on edits that use them (--calibrate DIR), or export with --weight-only"
        )


def stored_entries(name: str, shape: tuple[int, ...], layer: Layer, compute: str) -> list[UnplacedTensor]:
    """The tensors that a weight of `shape` is stored as."""
    if layer.format not in FORMATS:
        return [(name, STORED_DTYPES[layer.format], shape)]
    rows, columns = shape
    return [
        (name + ending, STORED_DTYPES[compute] if dtype == COMPUTE else dtype, part)
        for ending, dtype, part in weight_layout(layer, (rows, columns))
    ]
