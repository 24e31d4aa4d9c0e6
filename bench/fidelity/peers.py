"""Peers of our quantized bundles: the reference's weights quantized by other libraries, run in the same graphs.

A peer's bundle is the fp32 reference with other numbers in it: those that the library would multiply with, in exactly
the layers that our bundles quantize. So sampler, kernels and everything spared are the same on both sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import KontextError
from ...runtime.backends.onnxruntime import first_line
from ...runtime.bundle import MANIFEST_NAME, Bundle
from . import bits as fidelity_bits
from .bits import COUNTED, Layers
from .peers_libraries import (
    Quantizer,
    bitsandbytes_nf4,
    gguf,
    modelopt,
    quanto,
    torchao_eight_bits,
    torchao_int4,
)


@dataclass(frozen=True)
class Peer:
    """`library` is the distribution to install, `module` what is imported of it."""

    library: str
    module: str
    what: str
    quantize: Quantizer

    def version(self) -> str:
        return f"{self.library} {importlib.metadata.version(self.library)}"


PEERS = {
    "torchao-fp8": Peer(
        "torchao", "torchao", "E4M3 per output channel", torchao_eight_bits("Float8WeightOnlyConfig")
    ),
    "torchao-int8": Peer(
        "torchao", "torchao", "INT8 per output channel", torchao_eight_bits("Int8WeightOnlyConfig")
    ),
    "torchao-int4": Peer("torchao", "torchao", "INT4 and zero points, groups of 64", torchao_int4),
    "bnb-nf4": Peer("bitsandbytes", "bitsandbytes", "NF4, blocks of 64", bitsandbytes_nf4(double=False)),
    "bnb-nf4-double": Peer(
        "bitsandbytes", "bitsandbytes", "NF4, blocks of 64, 8-bit scales", bitsandbytes_nf4(double=True)
    ),
    "quanto-int8": Peer("optimum-quanto", "optimum.quanto", "INT8 per output channel", quanto("qint8", 8)),
    "quanto-int4": Peer(
        "optimum-quanto", "optimum.quanto", "INT4 and shifts, its groups", quanto("qint4", 4)
    ),
    "gguf-q8_0": Peer("gguf", "gguf", "Q8_0, blocks of 32", gguf("Q8_0")),
    "gguf-q5_0": Peer("gguf", "gguf", "Q5_0, blocks of 32", gguf("Q5_0")),
    "gguf-q4_1": Peer("gguf", "gguf", "Q4_1, blocks of 32", gguf("Q4_1")),
    "gguf-q4_0": Peer("gguf", "gguf", "Q4_0, blocks of 32", gguf("Q4_0")),
    "gguf-q4_k": Peer("gguf", "gguf", "Q4_K, blocks of 256", gguf("Q4_K")),
    "modelopt-fp8": Peer("nvidia-modelopt", "modelopt", "E4M3 per tensor", modelopt((4, 3), None)),
    "modelopt-int4": Peer("nvidia-modelopt", "modelopt", "INT4, groups of 64", modelopt(4, 64)),
}


@dataclass
class PeerBundle:
    """A peer's numbers in a bundle of their own, and their bits per weight as the library would store them."""

    bundle: Bundle
    bits: dict[str, int] = field(default_factory=dict)
    """Of the layers quantized, by graph."""
    counts: dict[str, int] = field(default_factory=dict)

    def layer_bits(self) -> float:
        return sum(self.bits[graph] for graph in COUNTED) / sum(self.counts[graph] for graph in COUNTED)

    def file_bits(self, reference: Bundle) -> float:
        """With what the library would leave as the reference has it."""
        whole = 8 * sum(reference.graphs[graph].weights.stat().st_size for graph in COUNTED)
        replaced = sum(self.bits[graph] - self.spared(reference, graph) for graph in COUNTED)
        return (whole + replaced) / fidelity_bits.parameters(reference)

    def spared(self, reference: Bundle, graph: str) -> int:
        """Bits that the quantized layers take in the reference: fp32, or what it was exported in."""
        wide = {"fp32": 32, "fp16": 16, "bf16": 16}[reference.manifest["precision"]["networks"][graph]]
        return wide * self.counts[graph]


def parse(text: str | None) -> list[str]:
    """`torchao-int4,bnb-nf4` as names; `all` as all there are.

    Raises:
        KontextError: no such peer.
    """
    if not text:
        return []
    if text == "all":
        return list(PEERS)
    names = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if unknown := [name for name in names if name not in PEERS]:
        raise KontextError(
            f"no peer is called {', '.join(map(repr, unknown))}: there are {', '.join(PEERS)}, and all"
        )
    return names


def why_not(name: str) -> str | None:
    """Why a peer cannot be measured here; None where it can."""
    peer = PEERS[name]
    try:
        installed = importlib.util.find_spec(peer.module) is not None
        importlib.metadata.version(peer.library)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        installed = False
    if not installed:
        return f"{name} needs {peer.library}, which is not installed: pip install 'kontext-export[peers]'"
    if name == "gguf-q4_k":
        return (
            f"{name}: the gguf package reads Q4_K and does not write it, and its blocks of 256 fit no layer of "
            "the embedded model; gguf-q4_0 and gguf-q4_1 are its 4-bit formats"
        )
    try:  # now rather than after an hour of measuring the others
        with quiet():
            peer.quantize(torch.ones(64, 64))
    except Exception as fault:  # each library has exceptions of its own
        return f"{name}: {peer.version()} does not work here: {first_line(fault)}"
    return None


@contextlib.contextmanager
def quantized(name: str, reference: Bundle, layers: Layers) -> Iterator[PeerBundle]:
    """The peer's bundle, in a folder that is gone afterwards.

    Raises:
        KontextError: the library cannot quantize one of the layers.
    """
    peer = PEERS[name]
    with tempfile.TemporaryDirectory(prefix="kontext-peer-") as temporary:
        folder = Path(temporary) / name
        shutil.copytree(reference.folder, folder)
        copy = Bundle.open(folder)
        result = PeerBundle(copy)
        manifest = json.loads(json.dumps(copy.manifest))
        headers = fidelity_bits.headers(copy)
        for graph, weights in layers.items():
            path = copy.graphs[graph].weights
            result.bits[graph] = result.counts[graph] = 0
            with path.open("r+b") as file:
                for weight in weights:
                    place = headers[graph].tensors[weight]
                    original = place.read()
                    values, bits = replaced(name, peer, f"{graph}: {weight}", original)
                    file.seek(place.start)
                    file.write(values.view(torch.uint8).numpy().data)
                    result.bits[graph] += bits
                    result.counts[graph] += original.numel()
            entry = manifest["files"][path.relative_to(folder).as_posix()]
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
        result.bundle = Bundle.open(folder)
        yield result


def replaced(name: str, peer: Peer, where: str, original: Tensor) -> tuple[Tensor, int]:
    """What a weight [in, out] becomes, in its own format and flat, and its bits."""
    weight = original.t().float().contiguous()
    values: list[Tensor] = []
    bits = 0
    for part in weight.split(parts(where, weight.shape)):
        try:
            with quiet():
                quantized = peer.quantize(part.contiguous())
        except Exception as fault:  # each library has exceptions of its own
            raise KontextError(
                f"{name} cannot quantize {where} {list(part.shape)}: {first_line(fault)}"
            ) from fault
        values.append(quantized.values)
        bits += quantized.bits
    return torch.cat(values).t().to(original.dtype).contiguous().flatten(), bits


def parts(where: str, shape: Sequence[int]) -> list[int]:
    """Output rows of the matrices that a weight fuses: q, k, v and the MLP's, which the peers keep apart."""
    rows, columns = shape
    if where.endswith(".qkv.weight"):
        return [rows // 3] * 3
    if where.endswith(".linear1.weight"):
        return [columns] * 3 + [rows - 3 * columns]
    return [rows]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries greet with what they miss (CUDA kernels, torchvision): of no use to who measures numbers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def describe(name: str) -> dict[str, Any]:
    return {"precision": PEERS[name].what, "library": PEERS[name].version()}
