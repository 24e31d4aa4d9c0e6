"""Training of the embedded model, at sizes that take seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors import safe_open

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.model.config import AutoencoderConfig  # noqa: E402
from kontext.tiny import distill, run_state, train, train_flow  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402

SMALL = dataclasses.replace(
    TINY,
    transformer=dataclasses.replace(
        TINY.transformer, hidden_size=64, num_heads=1, num_double_blocks=1, num_single_blocks=1
    ),
    autoencoder=AutoencoderConfig((8, 8, 8, 8), layers_per_block=1, norm_groups=4, sample_size=128),
)


SECONDS = 1 / 60
"""In minutes: a stage of half a second ends after a step or two."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (train_flow, distill):
        monkeypatch.setattr(module, "BATCH", 2)
        monkeypatch.setattr(module, "FRESH_PER_STEP", 1)
        monkeypatch.setattr(module, "FIRST_FILL", 64)
    monkeypatch.setattr(train, "TINY", SMALL)


def counters(state: Path) -> dict[str, float]:
    with safe_open(state, "pt") as file:
        result: dict[str, float] = json.loads(file.metadata()["counters"])
    return result


@pytest.mark.usefixtures("short")
def test_every_stage_trains_resumes_and_ends_in_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    minutes = dict.fromkeys(train.STAGES, 0.5 * SECONDS)
    train.train(run, list(train.STAGES), minutes, "cpu")
    state = run / "fewstep.safetensors"
    before = counters(state)
    assert before["step"] >= 1
    train.train(run, ["fewstep"], {**minutes, "fewstep": before["seconds"] / 60 + 0.5 * SECONDS}, "cpu")
    assert counters(state)["step"] > before["step"]
    after = run_state.load_average(state)
    # The text encoders are trained with the flow and left alone by distillation.
    flow = run_state.load_average(run / "flow.safetensors")
    name = "text_encoder_2.shared.weight"
    assert torch.equal(flow[name], after[name])

    # The encoder is stage 1's, since the flow knows its latents; the decoder is trained to the end.
    first = run_state.load_average(run / "autoencoder.safetensors")
    last = run_state.load_average(run / "decoder.safetensors")
    assert not torch.equal(first["decoder.conv_out.weight"], last["conv_out.weight"])

    train.write_checkpoint(run, tmp_path / "checkpoint")
    from kontext.model.checkpoint import load_state

    written = load_state(tmp_path / "checkpoint")
    key = "single_blocks.0.linear1.weight"
    assert torch.equal(written["transformer"][key], after[f"transformer.{key}"].bfloat16())
    train.write_checkpoint(run, tmp_path / "earlier", "guidance")
    guided = run_state.load_average(run / "guidance.safetensors")
    earlier = load_state(tmp_path / "earlier")["transformer"][key]
    assert torch.equal(earlier, guided[f"transformer.{key}"].bfloat16())
    assert torch.equal(written["vae_encoder"]["conv_in.weight"], first["encoder.conv_in.weight"].bfloat16())
    assert torch.equal(written["vae_decoder"]["conv_out.weight"], last["conv_out.weight"].bfloat16())


def test_an_unknown_stage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main(["--stages", "flow,magic"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown stage magic")
