"""8-bit weights, unpacked in the interpreter, against float64."""

from __future__ import annotations

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import dequantize_8bit
from kontext.quant.formats import FORMATS

from .conftest import check_operator, error


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if format.bits == 8])
@pytest.mark.parametrize(("depth", "channels"), [(3, 5), (64, 130), (40, 600)])
def test_codes_times_scales(format: str, depth: int, channels: int) -> None:
    g = torch.Generator().manual_seed(depth)
    weight = torch.randn(depth, channels, generator=g) * torch.rand(channels, generator=g)
    codes, scale = FORMATS[format].quantize(weight, torch.float32)
    wanted = codes.double() * scale.double()
    for run in (dequantize_8bit.launch_dequantize_8bit, dequantize_8bit.dequantize_8bit_reference):
        assert error(run(codes, scale, torch.float32), wanted) < 1e-6
        assert error(run(codes, scale, torch.float16), wanted) < 1e-3
    check_operator(dequantize_8bit.dequantize_8bit_op, (codes, scale, torch.float32))


def test_every_e4m3_number_is_exact() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    out = dequantize_8bit.launch_dequantize_8bit(codes, torch.ones(256), torch.float32)
    assert torch.equal(out.isnan(), codes.float().isnan())
    assert torch.equal(out.nan_to_num(7), codes.float().nan_to_num(7))
    with pytest.raises(KontextError, match="a scale for each of 256"):
        dequantize_8bit.launch_dequantize_8bit(codes, torch.ones(8), torch.float32)
    with pytest.raises(KontextError, match="E4M3 or INT8"):
        dequantize_8bit.launch_dequantize_8bit(codes.float(), torch.ones(256), torch.float32)
