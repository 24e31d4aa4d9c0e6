"""ggml's quantizers: the bytes that its library writes, read by the gguf package, and llama.cpp's rules for shapes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants

from kontext.bench.fidelity import ggml, peers
from kontext.decibels import decibels
from kontext.errors import KontextError

BITS = {
    "Q2_K": 2.625,
    "Q3_K": 3.4375,
    "Q4_K": 4.5,
    "Q5_K": 5.5,
    "Q6_K": 6.5625,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.25,
    "Q8_0": 8.5,
    "Q5_1": 6.0,
}


@pytest.fixture
def library() -> None:
    if (missing := ggml.why_missing()) is not None:
        pytest.skip(f"needs {missing}")


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(96, 512, generator=torch.Generator().manual_seed(0)) / 512**0.5


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", BITS)
def test_values_are_what_gguf_reads(form: str, weight: torch.Tensor) -> None:
    found = ggml.ggml(form)(weight)
    assert found.form == form
    assert found.bits / weight.numel() == BITS[form]
    stored = np.frombuffer(ggml.quantize_rows(form, weight), np.uint8).reshape(len(weight), -1)
    expected = quants.dequantize(stored, GGMLQuantizationType[form])
    np.testing.assert_array_equal(found.values.numpy(), expected)
    snr = decibels(weight.square().sum().item(), (found.values - weight).square().sum().item())
    assert 5.5 * BITS[form] - 6 < snr < 6.02 * BITS[form]


@pytest.mark.usefixtures("library")
def test_q8_0_is_what_the_gguf_package_writes(weight: torch.Tensor) -> None:
    expected = quants.quantize(weight.numpy(), GGMLQuantizationType.Q8_0)
    assert bytes(ggml.quantize_rows("Q8_0", weight)) == expected.tobytes()


@pytest.mark.usefixtures("library")
def test_importance_moves_the_error_to_other_columns(weight: torch.Tensor) -> None:
    importance = torch.ones(512)
    importance[::4] = 100.0
    plain, weighed = (
        ggml.dequantize_rows("Q4_K", ggml.quantize_rows("Q4_K", weight, each), weight.shape)
        for each in (None, importance)
    )
    errors = [(values - weight)[:, ::4].square().sum() for values in (plain, weighed)]
    assert errors[1] < 0.8 * errors[0]
    peer = peers.PEERS["gguf-q4_k-imatrix"]
    assert torch.equal(peer.quantizer(importance)(weight).values, weighed)


@pytest.mark.parametrize(
    ("kind", "width", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 192, "Q5_0"),
        ("Q5_K", 192, "Q5_1"),
        ("Q6_K", 960, "Q8_0"),
        ("IQ4_XS", 192, "IQ4_NL"),
        ("Q2_K", 192, "IQ4_NL"),
        ("IQ4_NL", 192, "IQ4_NL"),
        ("Q4_K", 48, "F16"),
        ("Q8_0", 40, "F16"),
    ],
)
def test_shapes_that_do_not_fit_take_llama_cpps_formats(kind: str, width: int, expected: str) -> None:
    """`tensor_type_fallback` of llama.cpp's llama-quant.cpp."""
    assert ggml.form_for(kind, width) == expected


@pytest.mark.usefixtures("library")
def test_a_peers_class_is_that_of_what_its_layers_got() -> None:
    values, bits, forms = peers.quantize_weight(
        "gguf-q4_k", peers.PEERS["gguf-q4_k"].quantize, "transformer: a.weight", torch.randn(192, 64)
    )
    assert (bits, dict(forms)) == (5.5 * values.numel(), {"Q5_0": values.numel()})
    bundle = peers.PeerBundle(None, forms=forms + Counter(Q4_K=values.numel() // 4))  # type: ignore[arg-type]
    about = bundle.about("gguf-q4_k")
    assert about["scheme"] == "W5A16"
    assert about["precision"] == "Q4_K, blocks of 256: Q5_0 80%, Q4_K 20% of the weights"
    assert about["library"].startswith("ggml ")


def test_what_is_no_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ggml.VARIABLE, raising=False)
    why = peers.why_unavailable("gguf-q4_k")
    assert why is not None
    assert why.startswith("gguf-q4_k needs ggml's library: set GGML_LIBRARY")
    monkeypatch.setenv(ggml.VARIABLE, str(tmp_path / "none.so"))
    assert "is no file" in (ggml.why_missing() or "")
    (tmp_path / "none.so").write_bytes(b"no library")
    assert "cannot be used" in (ggml.why_missing() or "")
    with pytest.raises(KontextError, match="this needs ggml's library"):
        ggml.loaded()
