"""Low-rank branches: the best approximation, the best correction for given inputs, and ranks by size."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.quant import low_rank  # noqa: E402


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 24), (20, 400), (400, 20), (300, 200)])
def test_leading_is_the_nearest_of_its_rank(shape: tuple[int, int]) -> None:
    """The last by a randomized decomposition, which narrower ones have not enough columns for."""
    matrix = noise(*shape) @ torch.diag(0.9 ** torch.arange(shape[1]))
    down, up = low_rank.leading(matrix, 8)
    assert down.shape == (shape[0], 8)
    assert up.shape == (8, shape[1])
    best = torch.linalg.svdvals(matrix)[8:].norm()  # Eckart and Young
    assert float((matrix - down @ up).norm()) <= 1.01 * float(best)
    assert torch.allclose(down.norm(dim=0), up.norm(dim=1), rtol=1e-3)


@pytest.mark.parametrize(
    ("spectrum", "worse"), [("flat", 0.05), ("heavy-tailed", 0.05), ("outstanding", 0.02)]
)
def test_what_leading_leaves_is_hardly_more_than_the_least(spectrum: str, worse: float) -> None:
    """Against the exact decomposition in fp64, in dB of what is left. Normal weights are the worst case: their
    directions are all alike."""
    matrix = noise(1024, 640)
    if spectrum == "heavy-tailed":
        matrix = matrix / noise(1024, 640, seed=1).abs().clamp(min=0.2)
    if spectrum == "outstanding":
        matrix = matrix + noise(1024, 12, seed=2) @ noise(12, 640, seed=3)
    down, up = low_rank.leading(matrix, 16)
    left = (matrix.double() - down.double() @ up.double()).square().sum()
    least = torch.linalg.svdvals(matrix.double())[16:].square().sum()
    assert float(left) <= 10 ** (worse / 10) * float(least)


def test_leading_of_less_than_its_rank() -> None:
    """Zeros, and a weight of rank 3, from the randomized decomposition: finite, and nothing is left."""
    few = noise(300, 3) @ noise(3, 200, seed=1)
    for matrix in (torch.zeros(300, 200), few, few * 1e-12):
        down, up = low_rank.leading(matrix, 16)
        assert torch.isfinite(down).all()
        assert torch.isfinite(up).all()
        assert float((down @ up - matrix).norm()) <= 1e-3 * float(matrix.norm())


def test_leading_is_the_same_whatever_was_drawn_before() -> None:
    matrix = noise(300, 200)
    first = low_rank.leading(matrix, 4)
    torch.rand(7)
    state = torch.get_rng_state()
    second = low_rank.leading(matrix, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # and draws nothing from the generator of others


@pytest.mark.parametrize("blocks", [1, 2])
def test_correction_serves_the_inputs_that_were_seen(blocks: int) -> None:
    """It beats the plain decomposition of the error, which does not know the inputs."""
    scales = torch.logspace(-2, 1, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(5))]
    inputs, error = noise(500, 64, seed=1) * scales, noise(64, 48, seed=2)
    moments = torch.stack([part.t() @ part for part in inputs.split(64 // blocks, dim=1)])

    def left(branch: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float((inputs @ (error - branch[0] @ branch[1])).norm())

    corrected = left(low_rank.correction(error, moments, 4))
    assert corrected < 0.7 * left(low_rank.leading(error, 4))
    best = torch.linalg.svdvals(inputs @ error)[4:].norm()
    assert corrected < 1.1 * float(best)


@pytest.mark.parametrize("blocks", [1, 2])
def test_correction_is_the_closed_form_of_its_paper(blocks: int) -> None:
    """QERA's, arXiv:2410.06040, in fp64 and with the moments' symmetric root: R^-1 · svd_r(R · error), with R = √M.

    M is dampened as GPTQ's: 1 % of the mean of its diagonal. Inputs are correlated, so that no triangle of M will do.
    """
    inputs, error = noise(300, 12, seed=1) @ noise(12, 48, seed=2), noise(48, 32, seed=3)
    moments = torch.stack([part.t() @ part for part in inputs.split(48 // blocks, dim=1)])
    roots = []
    for block in moments.double():
        values, vectors = torch.linalg.eigh(block + 0.01 * block.diagonal().mean() * torch.eye(len(block)))
        roots.append(vectors @ values.sqrt().diag() @ vectors.t())
    root = torch.block_diag(*roots)
    left, values, right = torch.linalg.svd(root @ error.double())
    expected = torch.linalg.inv(root) @ left[:, :8] @ values[:8].diag() @ right[:8]
    for factor in (1.0, 2.0**-30):  # in whatever unit the inputs are
        down, up = low_rank.correction(error, moments * factor, 8)
        assert torch.allclose((down @ up).double(), expected, atol=1e-3 * float(expected.abs().max()))


def test_nothing_seen_is_no_reason_to_fail() -> None:
    down, up = low_rank.correction(noise(32, 16), torch.zeros(1, 32, 32), 4)
    assert torch.isfinite(down).all()
    assert torch.isfinite(up).all()


def test_ranks_cost_at_most_a_quarter_of_a_bit() -> None:
    assert low_rank.rank_for((3072, 3072), 2) == 16
    assert low_rank.rank_for((15360, 3072), 2) == 32
    assert low_rank.rank_for((15360, 12288), 2) == 64
    assert low_rank.rank_for((192, 192), 2) == 0
    # 16 bits for each of 16 · 2 · 2048 numbers are a quarter of a bit for each of 2048 · 2048 weights.
    assert (low_rank.rank_for((2048, 2048), 2), low_rank.rank_for((2047, 2048), 2)) == (16, 0)
    for shape in ((3072, 3072), (15360, 3072), (4096, 4096)):
        rank = low_rank.rank_for(shape, 2)
        assert 16 * rank * sum(shape) / (shape[0] * shape[1]) <= 0.25
