"""The peers that run networks of their own, by name, and how one is opened in place of the reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from ....installation import install_command
from ....runtime.backends.protocol import Backend
from ....runtime.bundle import Bundle
from ..bits_per_weight import Layers, StoredBits, count_weights
from ..installed_library import InstalledLibrary
from ..quiet import quiet
from ..schemes import scheme
from . import bitsandbytes, model_optimizer, nncf, onnxruntime, quanto, torchao
from .graphs import GraphMethod, open_graphs
from .torch_networks import TorchMethod, open_networks


@dataclass(frozen=True)
class NetworkPeer(InstalledLibrary):
    """A library's quantization of weights and, as `scheme` says, inputs; `what` describes it in words."""

    what: str
    scheme: str
    method: TorchMethod | GraphMethod
    rows_apart: bool = True
    """Whether an edit's result is the same in a batch: no scale or choice is made from all rows together."""

    def why_missing(self) -> str | None:
        """What else it needs and is not there, in words."""
        if isinstance(self.method, TorchMethod) and importlib.util.find_spec("diffusers") is None:
            return f"diffusers, which is not installed: {install_command('bench')}"
        return None

    def try_out(self) -> None:
        """Raises whatever the library raises where it does not work."""
        with quiet():
            if isinstance(self.method, TorchMethod):
                self.method.try_alone()
            else:
                self.method.load()

    def open(
        self, name: str, reference: Bundle, backend: Backend, layers: Layers
    ) -> tuple[Backend, StoredBits]:
        """The reference with `layers` quantized, run by the library; graphs without such layers stay `backend`'s.

        Raises:
            KontextError: the library cannot quantize one of the layers.
        """
        if isinstance(self.method, TorchMethod):
            opened, bits = open_networks(name, self.method, reference, backend, layers)
        else:
            opened, bits = open_graphs(name, self.method, reference, backend, layers)
        return opened, StoredBits(bits, count_weights(reference, layers))


STATIC, TOKEN, TENSOR = (scheme(8, 8, way) for way in ("static", "per token", "per tensor"))

TORCHAO = ("torchao", "torchao")
QUANTO = ("optimum-quanto", "optimum.quanto")
BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
MODELOPT = ("nvidia-modelopt", "modelopt")
ORT = ("onnxruntime", "onnxruntime")
NNCF = ("nncf", "nncf")

NETWORK_PEERS: Mapping[str, NetworkPeer] = {
    "torchao-fp8-token": NetworkPeer(
        *TORCHAO, "E4M3 per output channel, E4M3 inputs per token", TOKEN, torchao.FP8
    ),
    "torchao-int8-token": NetworkPeer(
        *TORCHAO, "INT8 per output channel, INT8 inputs per token", TOKEN, torchao.INT8
    ),
    "torchao-int4-int8": NetworkPeer(
        *TORCHAO, "INT4, groups of 64, INT8 inputs per token", scheme(4, 8), torchao.INT4_INT8
    ),
    "quanto-fp8-static": NetworkPeer(
        *QUANTO, "E4M3 per output channel, E4M3 inputs and outputs, static", STATIC, quanto.FP8
    ),
    "quanto-int8-static": NetworkPeer(
        *QUANTO, "INT8 per output channel, INT8 inputs and outputs, static", STATIC, quanto.INT8
    ),
    "quanto-int4-int8": NetworkPeer(
        *QUANTO, "INT4 and shifts, its groups, INT8 inputs and outputs", scheme(4, 8), quanto.INT4_INT8
    ),
    "bnb-int8": NetworkPeer(
        *BITSANDBYTES,
        "LLM.int8: INT8 per output channel, INT8 inputs per token",
        TOKEN,
        bitsandbytes.INT8,
        rows_apart=False,  # which columns stay in 16 bits depends on all tokens
    ),
    "bnb-fp4": NetworkPeer(*BITSANDBYTES, "FP4, blocks of 64", scheme(4), bitsandbytes.FP4),
    "modelopt-fp8-static": NetworkPeer(
        *MODELOPT, "E4M3 per tensor, E4M3 inputs, static", STATIC, model_optimizer.FP8
    ),
    "modelopt-fp8-token": NetworkPeer(
        *MODELOPT, "E4M3 per output channel, E4M3 inputs per token", TOKEN, model_optimizer.FP8_TOKEN
    ),
    "modelopt-int8-static": NetworkPeer(
        *MODELOPT, "INT8 per output channel, INT8 inputs, static", STATIC, model_optimizer.INT8
    ),
    "modelopt-smoothquant": NetworkPeer(
        *MODELOPT, "SmoothQuant: INT8 per output channel, INT8 inputs", STATIC, model_optimizer.SMOOTHQUANT
    ),
    "modelopt-awq": NetworkPeer(*MODELOPT, "AWQ: INT4, groups of 64", scheme(4), model_optimizer.AWQ),
    "modelopt-awq-fp8": NetworkPeer(
        *MODELOPT, "AWQ: INT4, groups of 64, E4M3 inputs, static", scheme(4, 8), model_optimizer.AWQ_FP8
    ),
    "modelopt-svdquant": NetworkPeer(
        *MODELOPT, "SVDQuant: INT4, groups of 64, rank 32", scheme(4), model_optimizer.SVDQUANT
    ),
    "ort-int8-dynamic": NetworkPeer(
        *ORT,
        "INT8 per output channel, UINT8 inputs per tensor, at run time",
        TENSOR,
        onnxruntime.DYNAMIC,
        rows_apart=False,
    ),
    "ort-int8-static": NetworkPeer(
        *ORT, "INT8 per output channel, INT8 inputs and shifts, static", STATIC, onnxruntime.STATIC
    ),
    "nncf-int8": NetworkPeer(
        *NNCF, "SmoothQuant: INT8 per output channel, INT8 inputs, static", STATIC, nncf.INT8
    ),
    "nncf-int8-weights": NetworkPeer(
        *NNCF, "INT8 and shifts per output channel", scheme(8), nncf.INT8_WEIGHTS
    ),
    "nncf-int4-weights": NetworkPeer(*NNCF, "INT4, groups of 64", scheme(4), nncf.INT4_WEIGHTS),
    "nncf-int4-asym": NetworkPeer(*NNCF, "INT4 and shifts, groups of 64", scheme(4), nncf.INT4_ASYM_WEIGHTS),
    "nncf-nf4": NetworkPeer(*NNCF, "NF4, groups of 64", scheme(4), nncf.NF4_WEIGHTS),
}
