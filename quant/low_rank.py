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

OVERSAMPLING, ITERATIONS = 8, 2
"""Of the randomized singular value decomposition (Halko et al. 2011). Of 3072 x 3072 normal or heavy-tailed weights
it leaves 0.02 to 0.05 dB more than the exact one; 16 and 6 leave nothing more, and take 2.3 times as long."""


def rank_for(shape: tuple[int, int], bytes_each: int) -> int:
    """The largest of `RANKS` that costs a weight [in, out] at most `BITS`, at `bytes_each` a number; or 0."""
    rows, columns = shape
    for rank in RANKS:
        if 8 * bytes_each * rank * (rows + columns) <= BITS * rows * columns:
            return rank
    return 0


def leading(matrix: Tensor, rank: int, iterations: int = ITERATIONS) -> tuple[Tensor, Tensor]:
    """down [rows, rank], up [rank, columns]: their product is the nearest to `matrix` of that rank, in fp32.

    The singular values are shared evenly, so that neither factor leaves the range of 16 bits. More `iterations` come
    closer, where singular values fall slowly.
    """
    import torch

    matrix = matrix.float()
    if min(matrix.shape) <= 4 * rank + OVERSAMPLING:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        root = values[:rank].sqrt()
        return left[:, :rank] * root, root[:, None] * right[:rank]
    # Its own seed: an export must not depend on random numbers drawn before it.
    generator = torch.Generator().manual_seed(0)
    sample = matrix @ torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=generator)
    for _ in range(iterations):
        sample = matrix @ (matrix.t() @ torch.linalg.qr(sample).Q)
    basis = torch.linalg.qr(sample).Q
    inside = basis.t() @ matrix
    # The few singular values inside the basis, from a product that costs less than their decomposition.
    squares, turned = torch.linalg.eigh((inside @ inside.t()).double())
    root = squares[-rank:].flip(0).clamp(min=0).sqrt().sqrt().float()
    turned = turned[:, -rank:].flip(1).float()
    up = turned.t() @ inside / root.clamp(min=torch.finfo(root.dtype).tiny)[:, None]
    return basis @ turned * root, up


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
