"""A low-rank branch beside a quantized weight: x @ Q + (x @ down) @ up, with `down` and `up` kept in 16 bits.

With calibration it is the best correction, for the inputs that were seen, of the error that quantization leaves
(the closed form of QERA: Zhang et al. 2024, arXiv:2410.06040). Without calibration the weight's largest directions go
through the branch and the rest, which has fewer outliers, is quantized (SVDQuant: Li et al. 2024, arXiv:2411.05007).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RANKS = (64, 32, 16)
"""Ranks to choose from, best first; multiples of the tensor cores' tile."""

BITS = 0.25
"""Bits per weight that a branch may cost if its rank is chosen by size."""

OVERSAMPLING, ITERATIONS = 16, 6
"""Of the randomized singular value decomposition (Halko et al. 2011); the error's spectrum falls slowly."""


def rank_for(shape: tuple[int, int], bytes_each: int) -> int:
    """The largest of `RANKS` that costs a weight [in, out] at most `BITS`, at `bytes_each` a number; or 0."""
    rows, columns = shape
    for rank in RANKS:
        if 8 * bytes_each * rank * (rows + columns) <= BITS * rows * columns:
            return rank
    return 0


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """down [rows, rank], up [rank, columns]: their product is the nearest to `matrix` of that rank, in fp32.

    The singular values are shared evenly, so that neither factor leaves the range of 16 bits.
    """
    import torch

    matrix = matrix.float()
    if min(matrix.shape) <= 4 * rank + OVERSAMPLING:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    else:
        # Its own seed: an export must not depend on random numbers drawn before it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, turned = torch.svd_lowrank(matrix, q=rank + OVERSAMPLING, niter=ITERATIONS)
        left, values, right = left[:, :rank], values[:rank], turned[:, :rank].t()
    root = values.sqrt()
    return left * root, root[:, None] * right


def correction(error: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """down [in, rank] and up [rank, out] that minimize ‖X (error - down @ up)‖ over the calibration's inputs X.

    Args:
        error: [in, out], weight minus its quantized self.
        moments: fp32 [blocks, size, size], sums of x^T x; errors between blocks are taken as unrelated.
        rank: of the branch.
    """
    import torch

    from .gptq import DAMPING

    size = moments.shape[1]
    lowers = []
    for block in moments.double():
        mean = block.diagonal().mean()
        damping = DAMPING * mean if mean > 0 else block.new_ones(())
        lowers.append(torch.linalg.cholesky(block + torch.eye(size) * damping).float())
    parts = error.float().split(size)
    seen = torch.cat([lower.t() @ part for lower, part in zip(lowers, parts, strict=True)])
    down, up = leading(seen, rank)
    blocks = zip(lowers, down.split(size), strict=True)
    return torch.cat(
        [torch.linalg.solve_triangular(lower.t(), part, upper=True) for lower, part in blocks]
    ), up
