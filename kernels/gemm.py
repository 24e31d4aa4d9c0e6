"""FP8 and INT8 matrix products, scaled per row and per column, with an epilogue.

    product[m, n] = (sum_k a[m, k] * weight[n, k]) * a_scale[m] * w_scale[n]

Weights are [out, in], transposed from the bundle's when they are loaded: FP8 tensor cores read both operands along k.
INT8 sums are exact in int32; FP8 sums are fp32. Source: Triton's matrix multiplication tutorial.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autotune import Tile, fastest_tile, generation
from .epilogue import Epilogue, finish_reference, finish_split, plan_product, rows_of, tile_of
from .launch import Launch, capability, jit, require, require_capability, require_fp8, tl
from .numeric import CODES
from .operators import register_operator


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
    """Reference implementation in PyTorch, into `out`.

    Args:
        out, bias, gate, out_scale: see `epilogue.Epilogue`.
        a, a_scale: codes [batch, tokens, in] and fp32 scales [batch, tokens].
        weight, w_scale: codes [out, in] and scales [out].
    """
    epilogue = Epilogue(out, bias, gate, out_scale)
    check_scaled_linear(a, a_scale, weight, w_scale, epilogue)
    product = a.float() @ weight.float().t()
    finish_reference(product * a_scale[..., None] * w_scale.float(), epilogue)


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
    """One program per tile of one batch item's output.

    Parameters:
        a: codes [batch, tokens, K], contiguous, E4M3 or INT8.
        weight: codes [N, K], contiguous, in the dtype of a.
        a_scale: fp32 [batch, tokens], contiguous.
        w_scale: [N], fp32 or 16-bit.
        out: output [batch, tokens, N], strides (out_batch, out_token, 1); see `epilogue.finish_tile`.
        bias: [N] or None.
        gate: [batch, N], strides (gate_batch, 1), or None.
        out_scale: fp32 [1] or None.
        tokens: rows of each batch item.
        out_batch, out_token, gate_batch: strides in elements.
        N, K: output and input channels.
        BLOCK_M, BLOCK_N: rows and columns of a tile.
        BLOCK_K: input channels per step of the loop.
        GROUP_M: tiles below each other that consecutive programs compute, see `epilogue.tile_of`.
        WHOLE: BLOCK_K divides K, so that the loop needs no masks.
        PIECES: in which a tile is stored, see `epilogue.finish_split`.
        EPILOGUE, BIAS, LIMIT, INTEGER: see `epilogue.finish_tile`.
        IMPRECISE: how many products the tensor cores add up before the sum goes to fp32; None: all of them.

    Grid: (tiles, batch).
    """
    down, across = tile_of(tl.program_id(0), tokens, N, BLOCK_M, BLOCK_N, GROUP_M)
    batch = tl.program_id(1).to(tl.int64)
    ks = tl.arange(0, BLOCK_K)
    # Rows and columns beyond the end read the last ones' operands and are not stored, so the loop needs no masks. A
    # scalar address and 32-bit offsets: 64-bit addresses of every element would spill.
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
    # M, N, K, warps, stages. Hopper and datacenter Blackwell: two warpgroups, 64 rows of 256 columns each; smaller
    # tiles for the last wave of programs. Of INT8's products, the sums of 256 columns and their fp32 values do not both
    # fit the registers.
    (90, False): ((128, 256, 128, 8, 3), (128, 128, 128, 8, 4), (64, 256, 128, 4, 4)),
    (90, True): ((128, 128, 128, 8, 4), (128, 128, 64, 8, 4)),
    (80, False): ((128, 128, 64, 8, 4), (128, 64, 128, 4, 4), (64, 128, 128, 4, 4)),
    (80, True): ((128, 128, 64, 8, 4), (128, 128, 128, 8, 3)),
}
"""(oldest architecture, whether operands are INT8) → the tiles to measure; none spills on sm_89 or sm_90."""


def tiles(a: Tensor, arch: int) -> tuple[Tile, ...]:
    """The tiles to measure for an input in the dtype of `a`."""
    return TILES[generation(arch), a.dtype == torch.int8]


def check_scaled_linear(
    a: Tensor, a_scale: Tensor, weight: Tensor, w_scale: Tensor, epilogue: Epilogue
) -> None:
    """Raises KontextError for operands that do not go together."""
    require(
        a.dtype == weight.dtype and a.dtype in CODES.values(),
        f"a scaled product takes E4M3 or INT8 operands of the same dtype, not {a.dtype} and {weight.dtype}",
    )
    rows_of(a)
    require(
        weight.ndim == 2 and weight.is_contiguous() and weight.shape[1] == a.shape[2],
        f"the weight must be contiguous [out, {a.shape[2]}] for an input of {list(a.shape)}, not {list(weight.shape)}",
    )
    require(
        a_scale.shape == a.shape[:2] and a_scale.is_contiguous(),
        f"the input's scales must be {list(a.shape[:2])}, not {list(a_scale.shape)}",
    )
    require(
        tuple(w_scale.shape) == (weight.shape[0],),
        f"the weight's scales must be {[weight.shape[0]]}, not {list(w_scale.shape)}",
    )
    epilogue.check(tuple(a.shape[:2]), weight.shape[0])


def plan_scaled_linear(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    epilogue: Epilogue,
    fast: bool = True,
    arch: int = 0,
    tile: int = 0,
) -> Launch:
    """The launch; operands as in `scaled_linear_reference`.

    Args:
        fast: see `attention.plan_attention`.
        arch: compute capability, 90 for 9.0; 0 for that of the tensors' device.
        tile: index into `tiles`.
    """
    arch = arch or capability(a)
    check_scaled_linear(a, a_scale, weight, w_scale, epilogue)
    require_capability(arch)
    if a.dtype != torch.int8:
        require_fp8(arch, "FP8 products need", instead="INT8 activations")
    depth = a.shape[2]
    m, n, k, warps, stages = tiles(a, arch)[tile]
    return plan_product(
        scaled_gemm_kernel,
        (m, n, warps, stages),
        {"a": a, "weight": weight, "a_scale": a_scale, "w_scale": w_scale},
        {"K": depth, "BLOCK_K": k, "WHOLE": depth % k == 0, "IMPRECISE": None if fast else k},
        epilogue,
        # Blackwell's sums leave the tensor memory all at once: 256 columns of them spill with any epilogue.
        pieces=4 if arch in (100, 103) and n > 128 else 0,
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
    epilogue = Epilogue(out, bias, gate, out_scale)

    def plan(tile: int) -> Launch:
        return plan_scaled_linear(a, a_scale, weight, w_scale, epilogue, tile=tile)

    sizes = "x".join(map(str, (*a.shape[:2], *weight.shape)))
    key = f"{a.dtype} {sizes} {epilogue.name}"
    fastest_tile(key, tiles(a, capability(a)), plan, epilogue.accumulates_into)


scaled_linear_op = register_operator(
    "scaled_linear(Tensor(a!) out, Tensor a, Tensor a_scale, Tensor weight, Tensor w_scale, Tensor? bias, "
    "Tensor? gate, Tensor? out_scale) -> ()",
    launch_scaled_linear,
    scaled_linear_reference,
    lambda out, a, a_scale, weight, w_scale, bias, gate, out_scale: check_scaled_linear(
        a, a_scale, weight, w_scale, Epilogue(out, bias, gate, out_scale)
    ),
)
