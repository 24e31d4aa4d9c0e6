"""Every tile that a kernel may be launched with computes the same, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from kontext.kernels import attention, gemm, int4, norm_rope_quantize
from kontext.kernels.epilogue import Epilogue
from kontext.kernels.numeric import quantize_rows
from kontext.quant.formats.int4 import INT4

from . import reference
from .conftest import error

ARCHITECTURES = (89, 90)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_scaled_products(arch: int, format: str) -> None:
    g = torch.Generator().manual_seed(arch)
    x, w = torch.randn(1, 150, 192, generator=g), torch.randn(272, 192, generator=g)
    (a, a_scale), (weight, w_scale) = quantize_rows(x, format), quantize_rows(w, format)
    gate = torch.randn(1, 272, generator=g)
    wanted = (a.double() * a_scale.double()[..., None]) @ (weight.double() * w_scale.double()[:, None]).t()
    for tile in range(len(gemm.tiles(a, arch))):
        out = torch.full((1, 150, 272), float("nan"))
        gemm.plan_scaled_linear(a, a_scale, weight, w_scale, Epilogue(out), arch=arch, tile=tile).run()
        assert error(out, wanted) < 1e-5, gemm.tiles(a, arch)[tile]
        epilogue = Epilogue(out.fill_(1), gate=gate)
        gemm.plan_scaled_linear(a, a_scale, weight, w_scale, epilogue, arch=arch, tile=tile).run()
        assert error(out, 1 + gate * wanted) < 1e-5, gemm.tiles(a, arch)[tile]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_int4_products(arch: int) -> None:
    g = torch.Generator().manual_seed(arch)
    packed, scales = INT4.quantize(torch.randn(128, 144, generator=g), torch.float32)
    x = torch.randn(1, 140, 128, generator=g)
    a, a_scale = quantize_rows(x, "fp8")
    low, up = torch.randn(1, 140, 20, generator=g), torch.randn(20, 144, generator=g)
    wanted = (a.double() * a_scale.double()[..., None]) @ reference.int4(
        packed, scales
    ) + low.double() @ up.double()
    for tile in range(len(int4.tiles(a, arch))):
        out = torch.full((1, 140, 144), float("nan"))
        int4.plan_int4_linear(a, a_scale, packed, scales, low, up, Epilogue(out), arch=arch, tile=tile).run()
        assert error(out, wanted) < 1e-5, int4.tiles(a, arch)[tile]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tokens", [70, 300])
def test_attention(arch: int, tokens: int) -> None:
    g = torch.Generator().manual_seed(tokens)
    q, k, v = torch.randn(3, 1, 2, tokens, 128, generator=g).half()
    wanted = reference.attention(q, k, v)
    for tile in range(len(attention.tiles(q, arch))):
        out = torch.full((1, tokens, 256), float("nan")).half()
        attention.plan_attention(q, k, v, out, arch=arch, tile=tile).run()
        assert error(out, wanted) < 3e-3, attention.tiles(q, arch)[tile]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_quantized_attention(arch: int, format: str) -> None:
    g = torch.Generator().manual_seed(arch)
    qkv, angles = torch.randn(1, 190, 3 * 128, generator=g), torch.rand(190, 64, generator=g) * 6.28
    operands = norm_rope_quantize.launch_norm_rope_quantize(
        qkv, angles.cos(), angles.sin(), [torch.ones(128)] * 4, 1, 0, format
    )
    q, q_scale, k, k_scale, v, v_scale = operands
    wanted = attention.attention_quantized_reference(*operands, torch.float32)
    for tile in range(len(attention.tiles(q, arch))):
        out = torch.full((1, 190, 128), float("nan"))
        attention.plan_attention(q, k, v, out, (q_scale, k_scale, v_scale), arch=arch, tile=tile).run()
        assert error(out, wanted) < 0.035, attention.tiles(q, arch)[tile]
