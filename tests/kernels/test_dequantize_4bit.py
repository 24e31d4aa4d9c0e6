"""4-bit weights, unpacked in the interpreter, against the number formats' own `dequantize`."""

from __future__ import annotations

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import dequantize_4bit
from kontext.kernels.variants import meta
from kontext.quant.formats import FORMATS

from .conftest import check_operator, error
from .reference import code_values

FOUR_BITS = [name for name, format in FORMATS.items() if format.bits == 4]

Operands = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None, bool]


def draw(format: str, depth: int, channels: int, seed: int = 0) -> tuple[Operands, torch.Tensor]:
    """The kernel's operands of a random weight, and what the format dequantizes it to, float64 [in, out]."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(depth, channels, generator=g) * torch.rand(channels, generator=g)
    stored = FORMATS[format]
    values, *scales = stored.quantize(weight + (0.5 if format == "uint4" else 0), torch.float32)
    table, scale, zeros = stored.kernel_operands(*scales)
    return (values, table, scale, zeros, stored.transposed), stored.dequantize(values, *scales).double()


@pytest.mark.parametrize("format", FOUR_BITS)
@pytest.mark.parametrize(("depth", "channels"), [(64, 2), (192, 40), (128, 700)])
def test_the_same_weights_as_the_format(format: str, depth: int, channels: int) -> None:
    operands, wanted = draw(format, depth, channels)
    for run in (dequantize_4bit.launch_dequantize_4bit, dequantize_4bit.dequantize_4bit_reference):
        out = run(*operands, torch.float32)
        assert tuple(out.shape) == (depth, channels)
        assert error(out, wanted) < 1e-6
        assert error(run(*operands, torch.float16), wanted) < 1e-3


def test_weights_as_the_bundle_documents_them() -> None:
    """Without the package's own unpacking: the first of two codes is in the low half, NF4's in the high half."""
    packed = torch.randint(0, 256, (64, 8), dtype=torch.uint8)
    table, scales = torch.randn(16), torch.rand(4, 16) + 0.5
    out = dequantize_4bit.launch_dequantize_4bit(packed, table, scales, None, False, torch.float32)
    wanted = code_values(packed, table, high_first=False) * scales.double()[torch.arange(64) // 16]
    assert error(out, wanted) < 1e-6
    out = dequantize_4bit.launch_dequantize_4bit(packed, table, torch.ones(64, 1), None, True, torch.float32)
    assert error(out, code_values(packed, table, high_first=True).t()) < 1e-6


def test_every_e4m3_scale_is_exact() -> None:
    """Every positive E4M3 number, including subnormal ones, since the kernel decodes their bits."""
    scales = (
        torch.arange(127, dtype=torch.uint8)
        .view(torch.float8_e4m3fn)[None]
        .repeat(2, 2)[:, :252]
        .contiguous()
    )
    packed = torch.full((32, 126), 0x11, dtype=torch.uint8)
    table = torch.zeros(16)
    table[1] = 1
    out = dequantize_4bit.launch_dequantize_4bit(packed, table, scales, None, False, torch.float32)
    assert torch.equal(out, scales.float().repeat_interleave(16, 0))


@pytest.mark.parametrize("format", FOUR_BITS)
def test_the_operator(format: str) -> None:
    operands, _ = draw(format, 64, 16)
    check_operator(dequantize_4bit.dequantize_4bit_op, (*operands, torch.float16))


def test_refusals() -> None:
    (packed, table, scales, _, _), _ = draw("nvfp4", 64, 16)
    run = dequantize_4bit.launch_dequantize_4bit
    assert table is not None
    with pytest.raises(KontextError, match="sixteen fp32 values"):
        run(packed, table[:8], scales, None, False, torch.float32)
    with pytest.raises(KontextError, match="on the device of the codes"):
        run(packed, table.to("meta"), scales, None, False, torch.float32)
    with pytest.raises(KontextError, match="do not fit 4-bit weights of 64 inputs and 16 channels"):
        run(packed, table, scales[:3].contiguous(), None, False, torch.float32)
    with pytest.raises(KontextError, match=r"contiguous uint8 \[rows, bytes\]"):
        run(packed.t(), table, scales, None, False, torch.float32)
    with pytest.raises(KontextError, match=r"zero points must be uint8 \[4, 8\]"):
        run(packed, None, scales, packed, False, torch.float32)


def test_one_compiled_kernel_serves_all_sizes() -> None:
    """Sizes are arguments, so a bundle needs one compiled kernel per format."""
    keys = {
        dequantize_4bit.plan_dequantize_4bit(
            meta(depth, channels // 2, dtype=torch.uint8),
            meta(16, dtype=torch.float32),
            meta(depth // 16, channels, dtype=torch.float8_e4m3fn),
            None,
            False,
            meta(depth, channels, dtype=torch.bfloat16),
        ).key()
        for depth, channels in ((3072, 9216), (15360, 3072))
    }
    assert len(keys) == 1
