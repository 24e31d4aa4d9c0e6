"""The fastest recipe for a card: what is chosen, and why the others are not."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.export.calibration.fastest import CardPlan, fastest
from kontext.export.cli.format_flags import chosen_recipe
from kontext.export.cli.main import parser
from kontext.model.config import KontextConfig
from kontext.model.networks import linear_weights, weight_shapes
from kontext.quant.cards import find_card
from kontext.quant.formats import FORMATS
from kontext.quant.memory import Workload
from kontext.quant.recipe import choose_recipe
from kontext.quant.speed import ENGINE, TORCH
from kontext.tiny.architecture import TINY

WORK = Workload(1024, 1024)


def plan(card: str, executor: str = ENGINE, least: float = 25, calibrated: bool = True) -> CardPlan:
    return fastest(KontextConfig(), find_card(card), executor, WORK, None, least, calibrated)


def verdicts(found: CardPlan) -> dict[str, str]:
    return {each.flags: each.verdict for each in found.candidates}


def test_ampere_multiplies_in_int8() -> None:
    found = plan("RTX 3060")
    assert found.chosen == "--bf16 --int8 --static-inputs"
    assert found.plan.recipe == choose_recipe(
        tuple(found.plan.recipe.compute), 12_000_000_000, "bf16", "int8", calibrated=True, static_inputs=True
    )
    assert found.plan.peak < 12e9
    why = verdicts(found)
    assert why["--bf16"].startswith("transformer needs 18.8")
    assert why["--bf16 --fp8"] == "RTX 3060 has no FP8"
    assert why["--bf16 --int4 --activations fp8"] == "RTX 3060 does not multiply in FP8"
    assert why["--bf16 --int4"] == "below 25 dB"
    assert why["--bf16 --int8 --weight-only"].endswith("times as long")


def test_fp4_is_fastest_where_little_is_asked() -> None:
    assert plan("RTX 5090", least=10).chosen == "--bf16 --nvfp4"
    assert plan("RTX 4090", least=90).chosen == "--bf16"


def test_static_scales_need_a_calibration() -> None:
    found = plan("RTX 4090", calibrated=False)
    assert verdicts(found)["--bf16 --int8 --static-inputs"] == "needs --calibrate"
    assert found.chosen in ("--bf16", "--bf16 --fp8 --weight-only", "--bf16 --int8 --weight-only")


def test_fp4_inputs_need_a_calibration_in_the_torch_backend_too() -> None:
    found = plan("RTX 5090", TORCH, 15, calibrated=False)
    assert verdicts(found)["--bf16 --nvfp4"] == "needs --calibrate"
    assert found.chosen == "--bf16 --int8"


def test_flags_of_kontext_edit_belong_to_the_plan() -> None:
    found = plan("RTX 4060", TORCH, 10)
    flags = {each.run: each.flags for each in found.candidates}
    assert flags["--backend torch --activations fp8"] == (
        "--bf16 --int4, run with --backend torch --activations fp8"
    )
    assert found.run == (found.best.run if found.best else "")


def test_small_cards_get_a_format_for_each_layer() -> None:
    found = plan("RTX 4060")
    assert found.chosen == "--fit 8.00GB"
    assert found.plan.peak <= 8e9
    formats = {name for stage in found.plan.stages for name in stage.counts}
    assert not any(name.startswith(("uint4", "nf4", "nvfp4")) for name in formats), (
        "TensorRT unpacks these first"
    )
    assert found.seconds is not None


def test_what_cannot_be_had() -> None:
    with pytest.raises(
        KontextError, match=r"nothing on RTX 4060 is expected to have 60 dB in 8.00 GB: .* --fidelity \d+"
    ):
        plan("RTX 4060", least=60)
    with pytest.raises(KontextError, match="TensorRT for RTX does not compile for H100: leave out --engine"):
        plan("H100")
    for executor in (ENGINE, TORCH):
        with pytest.raises(KontextError, match="T4"):
            plan("T4", executor)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("executor", [ENGINE, TORCH])
@pytest.mark.parametrize("card", ["RTX 3060", "RTX 4090", "RTX 5090"])
def test_what_is_planned_is_what_the_flags_export(card: str, executor: str, calibrated: bool) -> None:
    """By the flags that the plan prints, as the command line reads them."""
    checkpoint = SimpleNamespace(config=TINY, parameters=lambda: 0)
    found = fastest(TINY, find_card(card), executor, Workload(128, 128), None, 0, calibrated)
    planned = [each for each in found.candidates if each.plan is not None]
    assert planned
    for each in planned:
        assert each.plan is not None
        words, _, run = each.flags.partition(", run with ")
        options = parser().parse_args(["export", *words.split()])
        written = chosen_recipe(options, checkpoint, calibrated)  # type: ignore[arg-type]
        assert each.plan.recipe == written, each.flags
        stage = next(stage for stage in each.plan.stages if stage.network == "transformer")
        counted: Counter[str] = Counter()
        for weight in sorted(linear_weights("transformer", TINY)):
            shape = weight_shapes("transformer", TINY)[weight][::-1]
            layer = written.layer_of("transformer", weight, shape, True)
            if layer.format not in FORMATS:
                continue
            inputs = layer.activations
            if executor == TORCH:
                # As `linear.choose_activations` and `KernelLinear.of` do it.
                asked = run.split()[-1] if run else layer.format
                inputs = asked if asked in FORMATS[layer.format].kernel_inputs else ""
                inputs = inputs if asked != "nvfp4" or layer.has_input_scale else ""
            counted[layer.format + ("+" + inputs if inputs else "")] += 1
        assert {name: count for name, (count, _) in stage.counts.items() if name != "compute"} == counted, (
            each.flags
        )


def test_the_torch_backend_rounds_at_run_time() -> None:
    assert plan("H100", TORCH, calibrated=False).chosen in ("--bf16 --fp8", "--bf16 --int8")
