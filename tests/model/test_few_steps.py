"""LoRAs for few steps, by the names that they have on the hub and that trainers give their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.model.few_steps import FewSteps, guess_steps, unclear_steps, weight_note


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", 8),
        ("Hyper-FLUX.1-dev-16steps-lora.safetensors", 16),
        ("flux_schnell_4-step.safetensors", 4),
        ("Hyper_16_Step.safetensors", 16),
        ("hyper8step.safetensors", 8),
        ("hyperflux-8steps.safetensors", 8),
        ("FluxTurbo-6-steps.safetensors", 6),
        ("FLUXLightning_4step.safetensors", 4),
        ("kontext-dmd2-4steps.safetensors", 4),
        ("kontext_few-step_12steps.safetensors", 12),
        ("Hyper-FLUX-12steps-distilled.safetensors", 12),
        ("FLUX.1-Turbo-Alpha.safetensors", 8),
        ("FLUX.1-Turbo-Alpha-8steps.safetensors", 8),
        ("kontext-lightning-08-steps-v2.safetensors", 8),
        ("models--alimama-creative--FLUX.1-Turbo-Alpha/snapshots/1/diffusion_pytorch_model.safetensors", 8),
        # no word says that they are distilled, or nobody distils for so many
        ("flux_4-step.safetensors", None),
        ("dance_2-step.safetensors", None),
        ("style_10step.safetensors", None),
        ("style_8steps.safetensors", None),
        ("save-4-steps-e12.safetensors", None),
        ("hyperrealism_8steps.safetensors", None),
        ("hyper-10steps.safetensors", None),
        # training steps: kohya's and musubi-tuner's checkpoints, ai-toolkit's, SimpleTuner's, people's own names
        ("style_v2-step00001000.safetensors", None),
        ("style-step00000008.safetensors", None),
        ("lora-16-step1500.safetensors", None),
        ("lora_16_steps_1500.safetensors", None),
        ("style_r16-steps.safetensors", None),
        ("style_rank16-steps.safetensors", None),
        ("style-rank-16-steps.safetensors", None),
        ("style_epoch_8_steps.safetensors", None),
        ("style_000001000.safetensors", None),
        ("checkpoint-8/pytorch_lora_weights.safetensors", None),
        ("style-2000steps.safetensors", None),
        ("style-10k-steps.safetensors", None),
        ("style-1.5-steps.safetensors", None),
        ("style_step_2000.safetensors", None),
        ("style-28-steps.safetensors", None),
        ("style-0-steps.safetensors", None),
        ("8-steps/style.safetensors", None),
        ("8-stepsister.safetensors", None),
    ],
)
def test_steps(name: str, steps: int | None) -> None:
    found = guess_steps(Path("/folder") / name, {})
    assert (found and found.count) == steps


def test_metadata_names_the_steps_of_a_file_whose_name_does_not() -> None:
    metadata = {"modelspec.title": "Turbo 4-step", "ss_steps": "8"}
    assert guess_steps(Path("a.safetensors"), metadata) == FewSteps(4, "its modelspec.title Turbo 4-step")
    named = guess_steps(Path("lcm-8-steps.safetensors"), {"ss_output_name": "Turbo 4-step"})
    assert named == FewSteps(8, "its name lcm-8-steps")


def test_the_number_of_trained_steps_is_not_that_of_sampling_steps() -> None:
    assert guess_steps(Path("turbo-8steps.safetensors"), {"ss_steps": "8"}) is None
    assert guess_steps(Path("turbo-8steps.safetensors"), {"ss_max_train_steps": 8}) is None


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("style_8steps", 8),
        ("dance_2-step", 2),
        ("save-4-steps-e12", 4),
        ("hyper-10steps", 10),
        ("style_10step", None),
        ("style_v2-step00001000", None),
        ("style_rank16-steps", None),
        ("hyper-8steps", None),
        ("FLUX.1-Turbo-Alpha", None),
    ],
)
def test_what_is_said_of_steps_that_are_not_applied(name: str, steps: int | None) -> None:
    note = (
        f"its name {name} may not mean sampling steps and was not applied: add --steps {steps} if it is "
        "distilled for them"
    )
    assert unclear_steps(Path(f"{name}.safetensors"), {}) == (note if steps else None)
    assert unclear_steps(Path(f"{name}.safetensors"), {"modelspec.title": "Turbo 4-step"}) is None


def test_the_weight_of_hyper_flux() -> None:
    path = Path("Hyper-FLUX.1-dev-8steps-lora.safetensors")
    assert weight_note(path, 1) == f"Hyper-FLUX is made for weight 0.125: --lora {path}:0.125"
    assert weight_note(path, 0.125) is None
    assert weight_note(Path("FLUX.1-Turbo-Alpha.safetensors"), 1) is None
