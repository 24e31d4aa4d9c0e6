"""The order of V's keys in quantized attention."""

from __future__ import annotations

import torch

from kontext.kernels import key_order


def test_neighbours_are_the_columns_of_one_thread() -> None:
    keys = torch.arange(48)
    first = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    assert key_order.interleave(keys)[:18].tolist() == [*first, 16, 17]


def test_deinterleave_is_the_inverse() -> None:
    keys = torch.arange(48)
    assert torch.equal(key_order.deinterleave(key_order.interleave(keys)), keys)
