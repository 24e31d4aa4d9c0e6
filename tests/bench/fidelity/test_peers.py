"""Peers: each library's numbers as plain arithmetic says they are, written where our layers are and nowhere else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from kontext.bench.fidelity import bits_per_weight, peers
from kontext.bench.fidelity.peer_quantizers import QuantizedWeight
from kontext.bench.fidelity.quiet import quiet
from kontext.decibels import decibels
from kontext.errors import KontextError
from kontext.installation import install_command
from kontext.quant import ggml
from kontext.runtime.bundle import Bundle

BITS = {
    "torchao-fp8": 8 + 32 / 192,
    "torchao-int8": 8 + 32 / 192,
    "torchao-int4": 4 + 2 * 16 / 64,
    "bnb-nf4": 4 + 32 / 64,
    "bnb-nf4-double": 4 + 8 / 64 + 32 / (64 * 256),
    "quanto-int8": 8 + 16 / 192,
    "quanto-int4": 4 + 2 * 16 / 96,
    "gguf-q8_0": 8.5,
    "gguf-q5_1": 6.0,
    "gguf-q5_0": 5.5,
    "gguf-q4_1": 5.0,
    "gguf-q4_0": 4.5,
    "modelopt-fp8": 8.0,
    "modelopt-int4": 4 + 16 / 64,
}


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(256, 192, generator=torch.Generator().manual_seed(0)) / 192**0.5


def quantized(name: str, weight: torch.Tensor) -> tuple[torch.Tensor, int]:
    if (why := peers.why_unavailable(name)) is not None:
        pytest.skip(why)
    with quiet():
        result = peers.PEERS[name].quantize(weight)
    return result.values, result.bits


@pytest.mark.parametrize("name", BITS)
def test_bits_and_signal_to_noise(name: str, weight: torch.Tensor) -> None:
    """Normal weights lose what their bits say: about 20 dB at 4 bits, 31 in E4M3, 43 at 8."""
    values, bits = quantized(name, weight)
    assert values.shape == weight.shape
    assert values.dtype == torch.float32
    assert bits / weight.numel() == pytest.approx(BITS[name], abs=0.01)
    snr = decibels(weight.square().sum().item(), (values - weight).square().sum().item())
    low, high = (
        (17, 23.5) if bits / weight.numel() <= 5 else (26, 33) if "fp8" in name or "q5" in name else (40, 48)
    )
    assert low < snr < high


def test_nf4_is_the_nearest_of_sixteen_levels(weight: torch.Tensor) -> None:
    """The levels of Dettmers et al. 2023, as bitsandbytes gives them, scaled by each block's largest weight."""
    values, _ = quantized("bnb-nf4", weight)
    blocks, found = weight.reshape(-1, 64), values.reshape(-1, 64)
    scaled = found / blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.unique((scaled * 1e4).round())
    assert len(levels) == 16
    assert levels[[0, -1]].tolist() == [-1e4, 1e4]


def test_q8_0_is_a_plain_scale(weight: torch.Tensor) -> None:
    values, _ = quantized("gguf-q8_0", weight)
    blocks = weight.reshape(-1, 32)
    scales = (blocks.abs().amax(dim=1, keepdim=True) / 127).half().float()
    expected = (blocks / (blocks.abs().amax(dim=1, keepdim=True) / 127)).round() * scales
    assert (values.reshape(-1, 32) - expected).abs().max() <= scales.max() * 1.001
    assert (values.reshape(-1, 32) - expected).abs().mean() < scales.mean() * 0.01


def test_fused_weights_are_quantized_apart() -> None:
    assert peers.fused_rows("transformer: double_blocks.0.img_attn.qkv.weight", (12, 4)) == [4, 4, 4]
    assert peers.fused_rows("transformer: single_blocks.0.linear1.weight", (28, 4)) == [4, 4, 4, 16]
    assert peers.fused_rows("transformer: single_blocks.0.linear2.weight", (4, 20)) == [4]


def test_a_peers_bundle_differs_in_our_layers_only(bundles: dict[str, Path]) -> None:
    if (why := peers.why_unavailable("gguf-q4_0")) is not None:
        pytest.skip(why)
    reference, ours = Bundle.open(bundles["fp32"]), Bundle.open(bundles["int4"])
    layers = bits_per_weight.common_layers(reference, [ours])
    assert layers["transformer"]
    assert not layers["vae_decoder"]
    with peers.quantized("gguf-q4_0", reference, layers) as found:
        found.bundle.verify()
        assert found.layer_bits() == 4.5
        assert 4.5 < found.file_bits(reference) < bits_per_weight.file_bits(reference, reference)  # type: ignore[operator]
        headers, originals = bits_per_weight.headers(found.bundle), bits_per_weight.headers(reference)
        for graph, header in headers.items():
            for name, place in header.tensors.items():
                same = bool((place.read() == originals[graph].tensors[name].read()).all())
                assert same is (name not in layers[graph]), (graph, name)
        name = layers["transformer"][0]
        before, after = (each["transformer"].tensors[name].read().numpy() for each in (originals, headers))
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99  # not transposed, not shifted
        folder = found.bundle.folder
    assert not folder.exists()


def test_what_a_library_cannot_quantize_is_one_line(bundles: dict[str, Path]) -> None:
    """T5's width of 48 has no whole blocks of 32."""
    if (why := peers.why_unavailable("gguf-q4_0")) is not None:
        pytest.skip(why)
    reference = Bundle.open(bundles["fp32"])
    layers = bits_per_weight.common_layers(reference, [Bundle.open(bundles["int8"])])
    with pytest.raises(KontextError, match="gguf-q4_0 cannot quantize text_encoder_2: encoder"):
        with peers.quantized("gguf-q4_0", reference, layers):
            pass


def test_names() -> None:
    assert peers.parse_peers(None) == []
    assert peers.parse_peers("all") == list(peers.ALL_PEERS)
    assert peers.parse_peers("bnb-nf4, gguf-q4_0,bnb-nf4") == ["bnb-nf4", "gguf-q4_0"]
    with pytest.raises(KontextError, match=r"--peers takes all, or .*; not 'awq'"):
        peers.parse_peers("awq,bnb-nf4")


def test_a_library_that_does_not_work_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def quantize(_: torch.Tensor) -> QuantizedWeight:
        raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setitem(peers.ALL_PEERS, "broken", peers.Peer("torch", "torch", "nothing", "W8A16", quantize))
    why = peers.why_unavailable("broken")
    assert why is not None
    assert why.startswith("broken: torch ")
    assert why.endswith("does not work here: no kernel")


def test_an_absent_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    why = peers.why_unavailable("quanto-int4")
    assert why == f"quanto-int4 needs optimum-quanto, which is not installed: {install_command('peers')}"


@pytest.fixture
def ggml_library() -> None:
    if (missing := ggml.why_missing()) is not None:
        pytest.skip(f"needs {missing}")


@pytest.mark.usefixtures("ggml_library")
def test_ggmls_values_are_what_gguf_reads(weight: torch.Tensor) -> None:
    wide = weight.reshape(192, 256)
    found = peers.PEERS["gguf-q4_k"].quantize(wide)
    assert (found.form, found.bits) == ("Q4_K", 4.5 * wide.numel())
    stored = ggml.quantize_rows("Q4_K", wide)
    assert torch.equal(found.values, ggml.dequantize_rows("Q4_K", stored, wide.shape))
    importance = torch.linspace(1, 9, 256)
    weighed = peers.PEERS["gguf-q4_k-imatrix"].quantizer(importance)(wide).values
    stored = ggml.quantize_rows("Q4_K", wide, importance)
    assert torch.equal(weighed, ggml.dequantize_rows("Q4_K", stored, wide.shape))


@pytest.mark.usefixtures("ggml_library")
def test_a_peers_class_is_that_of_what_its_layers_got() -> None:
    values, bits, forms = peers.quantize_weight(
        "gguf-q4_k", peers.PEERS["gguf-q4_k"].quantize, "transformer: a.weight", torch.randn(192, 64)
    )
    assert (bits, dict(forms)) == (5.5 * values.numel(), {"Q5_0": values.numel()})
    bundle = peers.PeerBundle(bundle=None, forms=forms + Counter(Q4_K=values.numel() // 4))  # type: ignore[arg-type]
    about = bundle.about("gguf-q4_k")
    assert about["scheme"] == "W5A16"
    assert about["precision"] == "Q4_K, blocks of 256: Q5_0 80%, Q4_K 20% of the weights"
    assert about["library"].startswith("ggml ")


def test_ggmls_peers_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.delenv(ggml.VARIABLE, raising=False)
    why = peers.why_unavailable("gguf-q4_k")
    assert why is not None
    assert why.startswith("gguf-q4_k needs ggml's library: set GGML_LIBRARY")
