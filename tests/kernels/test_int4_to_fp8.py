"""INT4 weights converted to E4M3, in the interpreter against float64."""

from __future__ import annotations

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import int4_to_fp8
from kontext.quant.formats.int4 import INT4

from .conftest import check_operator, error
from .reference import int4 as reference


def random_weight(seed: int, depth: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed integers [in, out / 2] and fp32 scales [in / 64, out]."""
    generator = torch.Generator().manual_seed(seed)
    return INT4.quantize(torch.randn(depth, channels, generator=generator), torch.float32)


@pytest.mark.parametrize("channels", [2, 40, 200])
def test_unpacking_to_fp8_rounds_each_weight_once(channels: int) -> None:
    packed, scales = random_weight(channels, 128, channels)
    packed.random_(256, generator=torch.Generator().manual_seed(channels))  # -8 included
    scales[:, 0] = 0  # a column of zeros
    by_column = int4_to_fp8.column_scales(scales)
    wanted = (reference(packed, scales) / by_column.double()).t()
    codes = int4_to_fp8.launch_int4_to_fp8(packed, scales, by_column)
    assert (codes.double() - wanted).abs().max() <= 16  # half of the largest codes' spacing
    assert (codes.double() - wanted).abs().le(wanted.abs() / 16 + 2**-10).all()
    assert torch.equal(codes.float(), int4_to_fp8.int4_to_fp8_reference(packed, scales, by_column).float())
    assert error(codes.double() * by_column[:, None], reference(packed, scales).t()) < 0.035


def test_the_operator_and_its_refusals() -> None:
    packed, scales = random_weight(1, 64, 16)
    by_column = int4_to_fp8.column_scales(scales)
    check_operator(int4_to_fp8.int4_to_fp8_op, (packed, scales, by_column))
    with pytest.raises(KontextError, match=r"column scales must be float32 \[16\]"):
        int4_to_fp8.launch_int4_to_fp8(packed, scales, by_column[:8])
    with pytest.raises(KontextError, match="groups of 64"):
        int4_to_fp8.launch_int4_to_fp8(packed[:32], scales, by_column)
    out = torch.empty(16, 64).to(torch.float8_e4m3fn)
    with pytest.raises(
        KontextError, match=r"need compute capability 8.9 \(Ada\), this GPU has 8.6: use 16-bit"
    ):
        int4_to_fp8.plan_int4_to_fp8(packed, scales, by_column, out, arch=86)
