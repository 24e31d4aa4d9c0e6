"""ggml's formats: bytes of the gguf package and of ggml's library, read by the package, and llama.cpp's rules for
shapes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from kontext.decibels import decibels  # noqa: E402
from kontext.errors import KontextError  # noqa: E402
from kontext.model.gguf_file import KINDS  # noqa: E402
from kontext.quant import ggml  # noqa: E402

QUANTIZED = [*ggml.PACKAGE[3:], *ggml.LIBRARY]


@pytest.fixture
def library() -> Path:
    if (missing := ggml.why_missing()) is not None:
        pytest.skip(f"needs {missing}")
    return Path(os.environ[ggml.VARIABLE])


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(96, 512, generator=torch.Generator().manual_seed(0)) / 512**0.5


@pytest.mark.parametrize("form", ggml.PACKAGE)
def test_bytes_are_those_of_the_gguf_package(form: str, weight: torch.Tensor) -> None:
    expected = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[form])
    stored = ggml.encode_rows(form, weight)
    assert stored.dtype == torch.uint8
    assert stored.numpy().tobytes() == expected.tobytes()
    assert len(stored) == ggml.stored_bytes(form, weight.numel()) == expected.nbytes


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", ggml.PACKAGE[3:])
def test_the_library_writes_the_same(form: str, weight: torch.Tensor) -> None:
    assert torch.equal(ggml.quantize_rows(form, weight), ggml.encode_rows(form, weight))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", ggml.LIBRARY)
def test_values_are_close_as_the_gguf_package_reads_them(form: str, weight: torch.Tensor) -> None:
    stored = ggml.encode_rows(form, weight)
    _, block, size = KINDS[form]
    bits = 8 * len(stored) / weight.numel()
    assert bits == 8 * size / block
    values = ggml.dequantize_rows(form, stored, weight.shape)
    snr = decibels(weight.square().sum().item(), (values - weight).square().sum().item())
    assert 5.5 * bits - 6 < snr < 6.02 * bits


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", ["Q4_K", "IQ4_NL"])
def test_threads_write_what_one_does(form: str, weight: torch.Tensor) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ggml.quantize_rows(form, weight[:41])
        torch.set_num_threads(3)
        assert torch.equal(ggml.quantize_rows(form, weight[:41]), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", [form for form in QUANTIZED if form not in ggml.UNWEIGHED])
def test_importance_moves_the_error_to_other_columns(form: str, weight: torch.Tensor) -> None:
    importance = torch.ones(512)
    importance[::4] = 100.0
    errors = [
        (ggml.dequantize_rows(form, ggml.encode_rows(form, weight, each), weight.shape) - weight)[:, ::4]
        .square()
        .sum()
        for each in (None, importance)
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", QUANTIZED)
def test_columns_without_any_importance_are_finite(form: str, weight: torch.Tensor) -> None:
    importance = torch.zeros(512)
    importance[300:] = 1.0
    for each in (importance, torch.zeros(512)):
        values = ggml.dequantize_rows(form, ggml.quantize_rows(form, weight, each), weight.shape)
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("form", ["F16", "Q8_0", "Q4_1"])
def test_numbers_beyond_fp16_are_refused(form: str, weight: torch.Tensor) -> None:
    large = weight.clone()
    large[3, 5] = 7e4
    with pytest.raises(KontextError, match=f"7e\\+04 does not fit into {form}, .*: take BF16 or F32"):
        ggml.encode_rows(form, large)
    ggml.encode_rows("BF16", large)


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
        ("BF16", 5, "BF16"),
    ],
)
def test_shapes_that_do_not_fit_take_llama_cpps_formats(kind: str, width: int, expected: str) -> None:
    """`tensor_type_fallback` of llama.cpp's llama-quant.cpp."""
    assert ggml.form_for(kind, width) == expected


def test_what_is_no_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ggml.VARIABLE, raising=False)
    assert (ggml.why_missing() or "").startswith("ggml's library: set GGML_LIBRARY to a libggml-base.so")
    monkeypatch.setenv(ggml.VARIABLE, str(tmp_path / "none.so"))
    assert "is no file" in (ggml.why_missing() or "")
    (tmp_path / "none.so").write_bytes(b"no library")
    assert "cannot be used" in (ggml.why_missing() or "")
    with pytest.raises(KontextError, match="this needs ggml's library"):
        ggml.loaded()
    with pytest.raises(KontextError, match="this needs ggml's library"):
        ggml.encode_rows("Q4_K", torch.ones(1, 256))


def test_a_truncated_library_is_one_line(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's loader would end this process with SIGBUS."""
    part = tmp_path / "part.so"
    shutil.copy(library, part)
    with part.open("r+b") as file:
        file.truncate(library.stat().st_size // 3)
    monkeypatch.setenv(ggml.VARIABLE, str(part))
    assert ggml.why_missing() == f"ggml's library: {part} cannot be used: it is truncated"
