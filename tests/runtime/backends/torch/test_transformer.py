"""What attention is computed in. The step itself is tested with the backend (test_backend.py)."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.runtime.backends.torch.transformer import choose_attention  # noqa: E402


def test_attention_on_a_cpu() -> None:
    assert choose_attention("auto", 128, torch.device("cpu")) == "16-bit"
    assert choose_attention("int8", 128, torch.device("cpu")) == "int8"


def test_heads_that_the_kernels_do_not_take() -> None:
    with pytest.raises(KontextError, match="heads of 32, 64, 128 channels, this model's have 48"):
        choose_attention("auto", 48, torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "ask", "message"),
    [
        ((7, 5), "auto", r"need compute capability 8.0 \(Ampere\), this GPU has 7.5"),
        ((8, 6), "fp8", r"fp8 attention needs compute capability 8.9 \(Ada\), this GPU has 8.6"),
    ],
)
def test_gpus_that_are_too_old(
    capability: tuple[int, int], ask: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    with pytest.raises(KontextError, match=message):
        choose_attention(ask, 128, torch.device("cuda"))
