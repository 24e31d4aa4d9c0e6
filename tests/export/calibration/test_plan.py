"""Plans of FLUX.1 Kontext for real cards, and recipes that match their plans."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.calibration.plan import COMPUTE, MemoryPlan, make_plan  # noqa: E402
from kontext.export.cli.plan_text import render_plan  # noqa: E402
from kontext.export.weights.plan import stored_entries  # noqa: E402
from kontext.model.config import KontextConfig  # noqa: E402
from kontext.model.dtypes import TORCH_DTYPES  # noqa: E402
from kontext.model.networks import linear_weights, weight_shapes  # noqa: E402
from kontext.quant.gpus import find_target  # noqa: E402
from kontext.quant.memory import Workload  # noqa: E402
from kontext.quant.options import parse_options  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402

FLUX = KontextConfig()
SQUARE = Workload(1024, 1024)


def flux(gigabytes: float, gpu: str = "sm_89", work: Workload = SQUARE, **more: object) -> MemoryPlan:
    return make_plan(FLUX, int(gigabytes * 1e9), find_target(gpu), work, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cards() -> dict[int, MemoryPlan]:
    return {size: flux(size) for size in (8, 12, 16, 24, 32)}


def test_every_card_has_a_plan_that_fits(cards: dict[int, MemoryPlan]) -> None:
    for size, plan in cards.items():
        assert plan.peak <= size * 1e9
        assert len(plan.stages) == 6
        assert plan.error <= 1.05 * plan.bound  # within 0.2 dB of any plan there is
    errors = [plan.error for plan in cards.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0
    assert errors[-1] == 0  # 32 GB take the whole model in 16 bits


def test_budgets_are_used(cards: dict[int, MemoryPlan]) -> None:
    for size in (8, 12, 16):
        assert cards[size].peak > 0.97 * size * 1e9


def test_the_recipe_stores_what_the_plan_says(cards: dict[int, MemoryPlan]) -> None:
    plan = cards[8]
    for stage in plan.stages:
        linears = linear_weights(stage.network, FLUX)
        total = 0
        for weight, shape in weight_shapes(stage.network, FLUX).items():
            linear = weight in linears
            stored = shape[::-1] if linear else shape
            layer = plan.recipe.layer_of(stage.network, weight, stored, linear)
            for _, dtype, size in stored_entries(weight, stored, layer, plan.recipe.compute[stage.network]):
                total += torch.Size(size).numel() * TORCH_DTYPES[dtype].itemsize
        tables = 8 * 512 * 512 if stage.network == "text_encoder_2" else 0
        assert stage.weights == total + tables


def test_architectures_get_what_they_run() -> None:
    for gpu, text in (("sm_86", "int8"), ("sm_89", "fp8")):
        plan = flux(12, gpu, requested=parse_options(text))
        assert {name for stage in plan.stages for name in stage.counts} == {COMPUTE, text}
    with pytest.raises(KontextError, match="fp8 weights do not run on sm_86: choose from int8, int4"):
        flux(12, "sm_86", requested=parse_options("fp8"))


def test_too_small_a_budget_names_the_smallest_that_does() -> None:
    with pytest.raises(
        KontextError, match=r".* does not fit into 3\.00 GB on sm_89: the smallest budget .* is (.*)GB"
    ) as fault:
        flux(3)
    smallest = float(str(fault.value).split(" is ")[1].removesuffix("GB"))
    assert flux(smallest).peak <= smallest * 1e9
    with pytest.raises(KontextError, match="does not fit into"):
        flux(smallest - 0.02)


def test_more_references_cost_fidelity() -> None:
    assert flux(12, work=Workload(1024, 1024, references=4)).error > flux(12).error


def test_a_model_that_fits_whole_is_left_alone() -> None:
    plan = make_plan(TINY, 10**9, find_target("cpu"), Workload(128, 128))
    assert plan.error == 0
    assert plan.recipe.rules == ()
    assert plan.compute == "fp32"


def test_the_plan_in_words(cards: dict[int, MemoryPlan]) -> None:
    text = render_plan(cards[12])
    assert (
        "FLUX.1-Kontext-dev in 12.00 GB on sm_89: an edit at 1024x1024 with one reference, 28 steps" in text
    )
    assert "T5" in text
    assert "dB signal to noise" in text
    assert "nothing lost" in render_plan(cards[32])
