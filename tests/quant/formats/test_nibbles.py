"""Two codes in a byte: the order of the halves, and the way back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.formats.nibbles import pack_nibbles, unpack_nibbles  # noqa: E402


def test_the_first_code_is_in_the_low_half_or_in_the_high_one() -> None:
    codes = torch.tensor([[1, 2, 15, 0], [9, 8, 7, 6]], dtype=torch.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0x0F], [0x89, 0x67]]
    assert pack_nibbles(codes, high_first=True).tolist() == [[0x12, 0xF0], [0x98, 0x76]]


@pytest.mark.parametrize("high_first", [False, True])
def test_every_byte_comes_back(high_first: bool) -> None:
    packed = torch.arange(256, dtype=torch.uint8).reshape(32, 8)
    codes = unpack_nibbles(packed, high_first)
    assert codes.shape == (32, 16)
    assert codes.max() == 15
    assert torch.equal(pack_nibbles(codes, high_first), packed)
