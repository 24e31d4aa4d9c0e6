"""FP8 and INT8 matrix products, scaled by row and by column, with an epilogue.

    product[m, n] = (sum_k a[m, k] * weight[n, k]) * a_scale[m] * w_scale[n]

Weights are [out, in] here, transposed from the bundle's when they are loaded: FP8 tensor cores want both operands
along k. INT8 sums are exact in int32; FP8 sums are in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import epilogue
from .autotune import Tile, fastest_tile, generation
from .epilogue import finish_split, rows_of, tile_of
from .launch import Launch, capability, jit, require, require_capability, tl


def scaled_linear_reference(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> None:
    """The plain meaning, into `out`.

    Args:
        out: [batch, tokens, out], any strides; added to where there is a gate.
        a, a_scale: codes [batch, tokens, in] and fp32 scales [batch, tokens].
        weight, w_scale: codes [out, in] and scales [out].
        bias: [out].
        gate: [batch, out].
        out_scale: fp32, one number: of the quantized output, after GELU.
    """
    check_scaled_linear(out, a, a_scale, weight, w_scale, out_scale)
    product = a.float() @ weight.float().t()
    epilogue.finish_reference(out, product * a_scale[..., None] * w_scale.float(), bias, gate, out_scale)


@jit(do_not_specialize=["tokens"])
def scaled_gemm_kernel(  # type: ignore[no-untyped-def]
    a,
    weight,
    a_scale,
    w_scale,
    out,
    bias,
    gate,
    out_scale,
    tokens,
    out_batch,
    out_token,
    gate_batch,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    WHOLE: tl.constexpr,
    PIECES: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BIAS: tl.constexpr,
    LIMIT: tl.constexpr,
    INTEGER: tl.constexpr,
    IMPRECISE: tl.constexpr,
):
    """One program a tile of one picture's output."""
    down, across = tile_of(tl.program_id(0), tokens, N, BLOCK_M, BLOCK_N, GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    # Rows and columns beyond the end take the last ones' operands and are not stored: no masks in the loop. A scalar
    # address and offsets of 32 bits: 64-bit addresses of every element would spill.
    a_start = a + (batch * tokens + down * BLOCK_M) * K
    w_start = weight + (across * BLOCK_N).to(tl.int64) * K
    a_at = tl.minimum(tl.arange(0, BLOCK_M), tokens - 1 - down * BLOCK_M)[:, None] * K + ks[None, :]
    w_at = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - across * BLOCK_N)[None, :] * K + ks[:, None]
    acc_type: tl.constexpr = tl.int32 if a.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros([BLOCK_M, BLOCK_N], acc_type)
    for k in range(0, K, BLOCK_K):
        if WHOLE:
            a_tile = tl.load(a_start + k + a_at)
            w_tile = tl.load(w_start + k + w_at)
        else:
            a_tile = tl.load(a_start + k + a_at, mask=(ks < K - k)[None, :], other=0.0)
            w_tile = tl.load(w_start + k + w_at, mask=(ks < K - k)[:, None], other=0.0)
        acc = tl.dot(a_tile, w_tile, acc, out_dtype=acc_type, max_num_imprecise_acc=IMPRECISE)
    rows = down * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = across * BLOCK_N + tl.arange(0, BLOCK_N)
    by_row = tl.load(a_scale + batch * tokens + rows, mask=rows < tokens, other=0.0)
    by_column = tl.load(w_scale + columns, mask=columns < N, other=0.0).to(tl.float32)
    product = acc.to(tl.float32) * by_row[:, None] * by_column[None, :]
    finish_split(
        product, rows, across * BLOCK_N, batch, tokens, N, out, bias, gate, out_scale, out_batch, out_token, gate_batch,
        BLOCK_M, BLOCK_N, PIECES, EPILOGUE, BIAS, LIMIT, INTEGER,
    )  # fmt: skip


TILES: dict[tuple[int, bool], tuple[Tile, ...]] = {
    # M, N, K, warps, stages. Hopper and datacenter Blackwell: two warpgroups, 64 rows of 256 columns each; smaller ones
    # for the last wave of programs. INT8's sums of 256 columns and their fp32 values do not fit the registers together.
    (90, False): ((128, 256, 128, 8, 3), (128, 128, 128, 8, 4), (64, 256, 128, 4, 4)),
    (90, True): ((128, 128, 128, 8, 4), (128, 128, 64, 8, 4)),
    (80, False): ((128, 128, 64, 8, 4), (128, 64, 128, 4, 4), (64, 128, 128, 4, 4)),
    (80, True): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3)),
}
"""(oldest architecture, whether operands are INT8) → the tiles to measure, none of which spills on sm_89 or sm_90."""


def tiles(a: Tensor, arch: int) -> tuple[Tile, ...]:
    return TILES[generation(arch), a.dtype == torch.int8]


def check_scaled_linear(
    out: Tensor, a: Tensor, a_scale: Tensor, weight: Tensor, w_scale: Tensor, out_scale: Tensor | None
) -> None:
    """Raises KontextError for operands that do not go together."""
    require(
        a.dtype == weight.dtype and a.dtype in (torch.float8_e4m3fn, torch.int8),
        f"a scaled product takes E4M3 or INT8 operands, both alike, not {a.dtype} and {weight.dtype}",
    )
    rows_of(a)
    require(
        weight.ndim == 2 and weight.is_contiguous() and weight.shape[1] == a.shape[2],
        f"a weight of {list(weight.shape)} for an input of {list(a.shape)}",
    )
    require(a_scale.shape == a.shape[:2] and a_scale.is_contiguous(), "a scale for every row")
    require(tuple(w_scale.shape) == (weight.shape[0],), "a scale for every output channel")
    epilogue.check_output(out, tuple(a.shape[:2]), weight.shape[0], out_scale)


def plan_scaled_linear(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
    fast: bool = True,
    arch: int = 0,
    tile: int = 0,
) -> Launch:
    """`fast`: see `attention.plan_attention`; `tile` counts those of `tiles`."""
    arch = arch or capability(a)
    check_scaled_linear(out, a, a_scale, weight, w_scale, out_scale)
    require_capability(arch, "" if a.dtype == torch.int8 else "FP8 products need", "INT8 activations")
    depth = a.shape[2]
    m, n, k, warps, stages = tiles(a, arch)[tile]
    # Blackwell's sums leave the tensor memory all at once: 256 columns of them spill beside any ending.
    pieces = {"PIECES": 4} if arch in (100, 103) and n > 128 else {}
    return epilogue.plan_product(
        scaled_gemm_kernel,
        (m, n, warps, stages),
        {"a": a, "weight": weight, "a_scale": a_scale, "w_scale": w_scale},
        {"K": depth, "BLOCK_K": k, "WHOLE": depth % k == 0, "IMPRECISE": None if fast else k, **pieces},
        (out, bias, gate, out_scale),
    )


def launch_scaled_linear(
    out: Tensor,
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
) -> None:
    def start(tile: int) -> None:
        plan_scaled_linear(out, a, a_scale, weight, w_scale, bias, gate, out_scale, tile=tile).run()

    if out.numel():
        sizes = "x".join(map(str, (*a.shape[:2], *weight.shape)))
        key = f"{a.dtype} {sizes} {epilogue.ending(gate, out_scale)}"
        fastest_tile(key, tiles(a, capability(a)), start, None if gate is None else out)


scaled_linear_op = torch.library.custom_op(
    "kontext::scaled_linear",
    launch_scaled_linear,
    mutates_args=("out",),
    device_types="cuda",
    schema="(Tensor(a!) out, Tensor a, Tensor a_scale, Tensor weight, Tensor w_scale, Tensor? bias, Tensor? gate, "
    "Tensor? out_scale) -> ()",
)
scaled_linear_op.register_kernel("cpu")(scaled_linear_reference)
scaled_linear_op.register_fake(
    lambda out, a, a_scale, weight, w_scale, bias, gate, out_scale: check_scaled_linear(
        out, a, a_scale, weight, w_scale, out_scale
    )
)
