"""Peers: the reference quantized by other libraries, in exactly the layers that our bundles quantize.

Those of `PEERS` are weights only. Their bundle is a copy of the fp32 reference with the values that the library would
multiply with; sampler, kernels and all other layers are the same. Those of `network_peers` run networks of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...bundle_folder import MANIFEST_NAME
from ...errors import KontextError
from ...installation import install_command
from ...quant import ggml as ggml_library
from ...runtime.backends.onnxruntime_library import first_line
from ...runtime.bundle import Bundle
from ...temporary_folder import temporary_folder
from . import bits_per_weight
from .bits_per_weight import COUNTED, Layers, StoredBits
from .importance import embedded_importance
from .installed_library import InstalledLibrary
from .network_peers.registry import NETWORK_PEERS, NetworkPeer
from .peer_quantizers import (
    Quantizer,
    bitsandbytes_nf4,
    ggml,
    gguf,
    modelopt,
    quanto,
    torchao_eight_bits,
    torchao_int4,
)
from .quiet import quiet
from .schemes import scheme


@dataclass(frozen=True)
class Peer(InstalledLibrary):
    """A library's number format. `scheme` is the class that it is compared in (`schemes`)."""

    what: str
    scheme: str
    quantize: Quantizer

    def try_out(self) -> None:
        """Raises whatever the library raises where it does not work."""
        with quiet():
            self.quantize(torch.ones(64, 64))

    def why_missing(self) -> str | None:
        """What else it needs and is not there, in words."""
        return None

    def quantizer(self, _importance: Tensor | None) -> Quantizer:
        """Of a weight whose inputs have this mean square, fp32 [in], in peers that use it."""
        return self.quantize


@dataclass(frozen=True)
class GgmlPeer(Peer):
    """A format that ggml's own library writes and the gguf package reads; `weighed` by an importance matrix or not."""

    form: str = ""
    weighed: bool = False

    def version(self) -> str:
        return f"ggml {ggml_library.version()}"

    def why_missing(self) -> str | None:
        return ggml_library.why_missing()

    def quantizer(self, importance: Tensor | None) -> Quantizer:
        return ggml(self.form, importance)


def ggml_peer(form: str, bits: int, block: int = 256, weighed: bool = False) -> GgmlPeer:
    what = f"{form}, blocks of {block}{', importance matrix' if weighed else ''}"
    return GgmlPeer("gguf", "gguf", what, scheme(bits), ggml(form), form, weighed)


PEERS = {
    "torchao-fp8": Peer(
        "torchao", "torchao", "E4M3 per output channel", "W8A16", torchao_eight_bits("Float8WeightOnlyConfig")
    ),
    "torchao-int8": Peer(
        "torchao", "torchao", "INT8 per output channel", "W8A16", torchao_eight_bits("Int8WeightOnlyConfig")
    ),
    "torchao-int4": Peer("torchao", "torchao", "INT4 and zero points, groups of 64", "W4A16", torchao_int4),
    "bnb-nf4": Peer(
        "bitsandbytes", "bitsandbytes", "NF4, blocks of 64", "W4A16", bitsandbytes_nf4(double=False)
    ),
    "bnb-nf4-double": Peer(
        "bitsandbytes",
        "bitsandbytes",
        "NF4, blocks of 64, 8-bit scales",
        "W4A16",
        bitsandbytes_nf4(double=True),
    ),
    "quanto-int8": Peer(
        "optimum-quanto", "optimum.quanto", "INT8 per output channel", "W8A16", quanto("qint8", 8)
    ),
    "quanto-int4": Peer(
        "optimum-quanto", "optimum.quanto", "INT4 and shifts, its groups", "W4A16", quanto("qint4", 4)
    ),
    "gguf-q8_0": Peer("gguf", "gguf", "Q8_0, blocks of 32", "W8A16", gguf("Q8_0")),
    "gguf-q5_1": Peer("gguf", "gguf", "Q5_1, blocks of 32", "W5A16", gguf("Q5_1")),
    "gguf-q5_0": Peer("gguf", "gguf", "Q5_0, blocks of 32", "W5A16", gguf("Q5_0")),
    "gguf-q4_1": Peer("gguf", "gguf", "Q4_1, blocks of 32", "W4A16", gguf("Q4_1")),
    "gguf-q4_0": Peer("gguf", "gguf", "Q4_0, blocks of 32", "W4A16", gguf("Q4_0")),
    "gguf-q5_k-imatrix": ggml_peer("Q5_K", 5, weighed=True),
    "gguf-q4_k-imatrix": ggml_peer("Q4_K", 4, weighed=True),
    "gguf-iq4_nl-imatrix": ggml_peer("IQ4_NL", 4, block=32, weighed=True),
    "gguf-q6_k": ggml_peer("Q6_K", 6),
    "gguf-q5_k": ggml_peer("Q5_K", 5),
    "gguf-q4_k": ggml_peer("Q4_K", 4),
    "gguf-q3_k": ggml_peer("Q3_K", 3),
    "gguf-q2_k": ggml_peer("Q2_K", 2),
    "gguf-iq4_xs": ggml_peer("IQ4_XS", 4),
    "gguf-iq4_nl": ggml_peer("IQ4_NL", 4, block=32),
    "modelopt-fp8": Peer("nvidia-modelopt", "modelopt", "E4M3 per tensor", "W8A16", modelopt((4, 3), None)),
    "modelopt-int4": Peer("nvidia-modelopt", "modelopt", "INT4, groups of 64", "W4A16", modelopt(4, 64)),
}

ALL_PEERS: dict[str, Peer | NetworkPeer] = {**PEERS, **NETWORK_PEERS}

WEIGHED = {name for name, peer in PEERS.items() if isinstance(peer, GgmlPeer) and peer.weighed}
"""Peers that weigh errors by our calibration's statistics."""

CALIBRATED = WEIGHED | {name for name, peer in NETWORK_PEERS.items() if peer.method.calibrated}
"""Peers that need our calibration's statistics or edits, which are of the embedded model."""


@dataclass(kw_only=True)
class PeerBundle(StoredBits):
    """A bundle with a peer's values, and the bits that the library would store for them."""

    bundle: Bundle
    forms: Counter[str] = field(default_factory=Counter)
    """Format → number of weights in it, in a peer that has several, of the counted graphs."""

    def about(self, name: str) -> dict[str, Any]:
        """What it is, as JSON: the peer's description, with the shares of its formats if these are several; its class
        is then that of their mean."""
        described = describe_peer(name)
        total = sum(self.forms.values())
        if not total:
            return described
        shares = [f"{form} {count / total:.0%}" for form, count in self.forms.most_common()]
        mean = sum(nominal_bits(form) * count for form, count in self.forms.items()) / total
        asked = described["precision"]
        several = f"{asked}: {', '.join(shares)} of the weights"
        return described | {
            "precision": asked if len(shares) == 1 and asked.startswith(shares[0].split()[0]) else several,
            "scheme": scheme(round(mean)),
        }


def nominal_bits(form: str) -> int:
    """Q5_0 has 5 and IQ4_NL 4: what its name says."""
    return int("".join(each for each in form.partition("_")[0] if each.isdigit()))


def parse_peers(text: str | None) -> list[str]:
    """`torchao-int4,bnb-nf4` as names; `all` as the names of all peers; None as none.

    Raises:
        KontextError: there is no such peer.
    """
    if not text:
        return []
    if text == "all":
        return list(ALL_PEERS)
    names = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if unknown := [name for name in names if name not in ALL_PEERS]:
        raise KontextError(
            f"--peers takes all, or {', '.join(ALL_PEERS)}; not {', '.join(map(repr, unknown))}"
        )
    return names


def why_unavailable(name: str) -> str | None:
    """Why a peer cannot be measured here; None if it can."""
    peer = ALL_PEERS[name]
    if not peer.is_installed():
        return f"{name} needs {peer.distribution}, which is not installed: {install_command('peers')}"
    if (missing := peer.why_missing()) is not None:
        return f"{name} needs {missing}"
    try:  # fail now, rather than after an hour of measuring others
        peer.try_out()
    except Exception as fault:  # each library raises its own types
        return f"{name}: {peer.version()} does not work here: {first_line(fault)}"
    return None


@contextlib.contextmanager
def quantized(name: str, reference: Bundle, layers: Layers) -> Iterator[PeerBundle]:
    """Yields the peer's bundle, in a folder that is removed afterwards.

    Raises:
        KontextError: the library cannot quantize one of the layers.
    """
    peer = PEERS[name]
    importance = embedded_importance() if name in WEIGHED else {}
    with temporary_folder("peer") as temporary:
        folder = Path(temporary) / name
        shutil.copytree(reference.folder, folder)
        copy = Bundle.open(folder)
        result = PeerBundle(bundle=copy)
        manifest = json.loads(json.dumps(copy.manifest))
        headers = bits_per_weight.headers(copy)
        for graph, weights in layers.items():
            path = copy.graphs[graph].weights
            result.bits[graph] = result.counts[graph] = 0
            with path.open("r+b") as file:
                for weight in weights:
                    place = headers[graph].tensors[weight]
                    original = place.read()
                    quantizer = peer.quantizer(importance.get((graph, weight)))
                    values, bits, forms = quantize_weight(name, quantizer, f"{graph}: {weight}", original)
                    file.seek(place.start)
                    file.write(values.view(torch.uint8).numpy().data)
                    result.bits[graph] += bits
                    result.counts[graph] += original.numel()
                    if graph in COUNTED:
                        result.forms += forms
            entry = manifest["files"][path.relative_to(folder).as_posix()]
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
        result.bundle = Bundle.open(folder)
        yield result


def quantize_weight(
    name: str, quantize: Quantizer, where: str, original: Tensor
) -> tuple[Tensor, int, Counter[str]]:
    """A weight [in, out] quantized and dequantized, flat in its own dtype, the bits that the peer stores, and how many
    weights are in each of its formats.

    Raises:
        KontextError: the library cannot quantize it; the message names `where`, the graph and the weight.
    """
    weight = original.t().float().contiguous()
    values: list[Tensor] = []
    bits, forms = 0, Counter[str]()
    for matrix in weight.split(fused_rows(where, weight.shape)):
        try:
            with quiet():
                quantized = quantize(matrix.contiguous())
        except Exception as fault:  # each library raises its own types
            raise KontextError(
                f"{name} cannot quantize {where} {list(matrix.shape)}: {first_line(fault)}"
            ) from fault
        values.append(quantized.values)
        bits += quantized.bits
        if quantized.form:
            forms[quantized.form] += matrix.numel()
    return torch.cat(values).t().to(original.dtype).contiguous().flatten(), bits, forms


def fused_rows(where: str, shape: Sequence[int]) -> list[int]:
    """Output rows of each matrix fused in a weight (q, k, v and the MLP's); peers quantize them separately."""
    rows, columns = shape
    if where.endswith(".qkv.weight"):
        return [rows // 3] * 3
    if where.endswith(".linear1.weight"):
        return [columns] * 3 + [rows - 3 * columns]
    return [rows]


def describe_peer(name: str) -> dict[str, Any]:
    peer = ALL_PEERS[name]
    return {"precision": peer.what, "scheme": peer.scheme, "library": peer.version()}
