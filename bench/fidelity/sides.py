"""What is compared with the reference: our bundles, what ONNX Runtime makes of them on a CPU, peers, and floors.

Our bundles run as their graphs say. On a CPU ONNX Runtime rounds the inputs of INT4 and INT8 weights to 8 bits anyway
unless it is told not to, which is another class: such bundles are measured both ways.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...runtime import OnnxRuntimeOptions, Pipeline
from ...runtime.backends.runnable import BF16, NVFP4, Formats
from ...runtime.bundle import Bundle
from ...runtime.server.desk import default_batch
from ..number_formats import formats_of
from . import bits_per_weight, e2m1_graphs, floors, peers
from .bits_per_weight import Layers
from .network_peers.registry import NETWORK_PEERS
from .quiet import quiet
from .schemes import bundle_scheme, scheme_on_cpu

ON_CPU = "-on-cpu"
"""Ends the name of a bundle's entry as ONNX Runtime runs it on a CPU by default."""


@dataclass
class ComparedBundle:
    """A bundle to compare with the reference, ours or a peer's; `about` says what it is, as JSON."""

    name: str
    about: dict[str, Any]
    pipe: Pipeline
    layer_bits: float | None
    file_bits: float | None
    batch: int = 1
    """Edits that may run together without a difference to any of them."""


@dataclass(frozen=True)
class Side:
    """An entry of the result: its group ("bundles", "peers" or "floors"), its name, and what opens its bundle while it
    is compared."""

    group: str
    name: str
    open: Callable[[], AbstractContextManager[ComparedBundle]]


def all_sides(
    reference: Bundle,
    opened: Mapping[str, Bundle],
    layers: Layers,
    peer_names: Sequence[str],
    *,
    as_deployed: bool,
) -> list[Side]:
    """In the order in which they are measured; `as_deployed`: also what ONNX Runtime makes of bundles on a CPU, and the
    floors."""
    found = []
    for name, bundle in opened.items():
        found.append(Side("bundles", name, partial(ours, name, bundle, reference, layers)))
        if as_deployed and (scheme := scheme_on_cpu(bundle)) is not None:
            opening = partial(ours, name + ON_CPU, bundle, reference, layers, on_cpu=scheme)
            found.append(Side("bundles", name + ON_CPU, opening))
    found += [Side("peers", name, partial(theirs, name, reference, layers)) for name in peer_names]
    for name, bundle in opened.items() if as_deployed else ():
        if floors.rounded_layers(bundle).get("transformer"):
            for part in (floors.INPUTS, floors.WEIGHTS):
                title = f"{name}-{part}-alone"
                opening = partial(floor, title, bundle, reference, layers, part)
                found.append(Side("floors", title, opening))
    return found


@contextlib.contextmanager
def ours(
    name: str, bundle: Bundle, reference: Bundle, layers: Layers, on_cpu: str | None = None
) -> Iterator[ComparedBundle]:
    """`on_cpu` is the class of a bundle as ONNX Runtime runs it on a CPU; None: it runs as its graphs say."""
    options = OnnxRuntimeOptions(activations="auto" if on_cpu else "16-bit")
    about = {
        **formats_of(bundle),
        "scheme": on_cpu or bundle_scheme(bundle),
        "activations": ["per block int8"] if on_cpu else bits_per_weight.activation_formats(bundle),
    }
    with runnable(bundle, reference) as runs:
        yield ComparedBundle(
            name,
            about | ({"on_cpu": True} if on_cpu else {}) | ({} if runs is bundle else {"unpacked": True}),
            Pipeline.load(runs, device="cpu" if on_cpu else "auto", backend=options),
            bits_per_weight.layer_bits(bundle, reference, layers),
            bits_per_weight.file_bits(bundle, reference),
        )


@contextlib.contextmanager
def runnable(bundle: Bundle, reference: Bundle) -> Iterator[Bundle]:
    """The bundle, or, if ONNX Runtime has no kernels for it, a copy without E2M1 that computes the same, or, if it also
    lacks what the bundle computes in and no inputs are rounded, the reference with its weights."""
    formats = Formats.of(bundle)
    if NVFP4 in formats.weights and BF16 not in formats.computes:
        with e2m1_graphs.runnable_copy(bundle) as copy:
            yield copy
    elif formats.refusal("cpu") and not floors.rounded_layers(bundle):
        with floors.floor(reference, bundle, floors.WEIGHTS, floors.quantized_layers(bundle)) as unpacked:
            yield unpacked
    else:
        yield bundle


@contextlib.contextmanager
def theirs(name: str, reference: Bundle, layers: Layers) -> Iterator[ComparedBundle]:
    if (peer := NETWORK_PEERS.get(name)) is not None:
        pipe = Pipeline.load(reference, backend="onnxruntime")
        pipe.backend, stored = peer.open(name, reference, pipe.backend, layers)
        bits = stored.layer_bits(), stored.file_bits(reference)
        # They unpack their weights in every step, which takes as long for a batch as for an edit.
        batch = default_batch(reference) if peer.rows_apart else 1
        with quiet():  # LLM.int8 warns of every product
            yield ComparedBundle(name, peers.describe_peer(name), pipe, *bits, batch)
        return
    with peers.quantized(name, reference, layers) as quantized:
        yield ComparedBundle(
            name,
            quantized.about(name),
            Pipeline.load(quantized.bundle, backend="onnxruntime"),
            quantized.layer_bits(),
            quantized.file_bits(reference),
        )


@contextlib.contextmanager
def floor(
    name: str, bundle: Bundle, reference: Bundle, layers: Layers, part: str
) -> Iterator[ComparedBundle]:
    """What a bundle loses by rounding one part alone; its bits are the bundle's, to be drawn beside it."""
    about = {
        **formats_of(bundle),
        "scheme": bundle_scheme(bundle),
        "activations": bits_per_weight.activation_formats(bundle),
        "part": part,
    }
    with floors.floor(reference, bundle, part, floors.rounded_layers(bundle)) as changed:
        yield ComparedBundle(
            name,
            about,
            Pipeline.load(changed, backend="onnxruntime"),
            bits_per_weight.layer_bits(bundle, reference, layers),
            bits_per_weight.file_bits(bundle, reference),
        )
