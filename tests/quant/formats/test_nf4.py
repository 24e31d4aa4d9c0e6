"""NF4 against bitsandbytes, byte for byte."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kontext.quant.formats.nf4 import NF4  # noqa: E402


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    rows=st.sampled_from([64, 128, 320]),
    columns=st.integers(1, 9),
    exponent=st.integers(-30, 30),
    empty=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bytes_are_bitsandbytes(rows: int, columns: int, exponent: int, empty: bool, seed: int) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    if empty:
        weight[:64, 0] = 0
    packed, absmax = NF4.quantize(weight, torch.float32)
    theirs, state = functional.quantize_4bit(weight.t().contiguous(), blocksize=64, quant_type="nf4")
    assert torch.equal(packed.flatten(), theirs.flatten())
    assert torch.equal(absmax.flatten(), state.absmax)
    restored = functional.dequantize_4bit(theirs, state)
    assert torch.equal(NF4.dequantize(packed, absmax), restored.t())


def test_the_table_is_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(torch.tensor(NF4.codes), functional.get_4bit_type("nf4", device="cpu"))


def test_rounding_in_steps_is_the_same() -> None:
    weight = torch.randn(128, 6, generator=torch.Generator().manual_seed(1))
    packed, absmax = NF4.quantize(weight, torch.float32)
    units = weight / NF4.step(absmax).repeat_interleave(64, dim=0)
    assert torch.equal(NF4.pack(NF4.nearest(units)), packed)


@pytest.mark.parametrize("shape", [(65, 2), (32, 2), (64,)])
def test_blocks_must_be_whole(shape: tuple[int, ...]) -> None:
    assert not NF4.fits(shape)
    with pytest.raises(ValueError, match="in a multiple of 64 and out of 1"):
        NF4.quantize(torch.zeros(shape), torch.float32)
