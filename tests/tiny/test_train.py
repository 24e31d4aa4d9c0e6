"""Training of the embedded model, at sizes that take seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kontext.model.config import AutoencoderConfig, KontextConfig  # noqa: E402
from kontext.runtime import tokens  # noqa: E402
from kontext.tiny import distill, pool, run_state, train, train_autoencoder, train_flow  # noqa: E402
from kontext.tiny.architecture import TINY  # noqa: E402
from kontext.tiny.edits import all_prompts_corpus  # noqa: E402
from kontext.tiny.network import KontextNetwork, Prompts, pack  # noqa: E402

SMALL = dataclasses.replace(
    TINY,
    transformer=dataclasses.replace(
        TINY.transformer, hidden_size=64, num_heads=1, num_double_blocks=1, num_single_blocks=1
    ),
    autoencoder=AutoencoderConfig((8, 8, 8, 8), layers_per_block=1, norm_groups=4, sample_size=128),
)
SECONDS = 1 / 60
"""A minute's share, so that a stage ends after a step or two."""


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


def test_packing_is_that_of_the_runtime() -> None:
    latents = torch.randn(2, 16, 4, 6)
    assert np.array_equal(pack(latents).numpy(), tokens.pack(latents.numpy()))


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


def test_a_run_state_comes_back_as_it_was(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.Module, run_state.Average, dict[str, torch.optim.Optimizer]]:
        model = torch.nn.Linear(3, 2)
        return model, run_state.Average(model, 0.9), {"adam": torch.optim.AdamW(model.parameters())}

    torch.manual_seed(0)
    model, average, optimizers = parts()
    model(torch.ones(1, 3)).sum().backward()
    optimizers["adam"].step()
    average.update(model, 5)
    run_state.save(tmp_path / "s.safetensors", model, average, optimizers, {"step": 7, "seconds": 1.5})
    other, other_average, other_optimizers = parts()
    counters = run_state.load(tmp_path / "s.safetensors", other, other_average, other_optimizers)
    assert counters == {"step": 7, "seconds": 1.5}
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other_average.weights["weight"], average.weights["weight"])
    moments = [each["adam"].state_dict()["state"][0]["exp_avg"] for each in (optimizers, other_optimizers)]
    assert torch.equal(*moments)
    assert run_state.load(tmp_path / "none", other, other_average, other_optimizers) == {}


def test_instructions_fit_the_sequence_encoder_and_mostly_are_whole_words(tmp_path: Path) -> None:
    train.tokenizers(tmp_path)
    prompts = Prompts(tmp_path, TINY)
    corpus = list(all_prompts_corpus(300, seed=1))
    clip, t5 = prompts(corpus)
    lengths = (t5 != 0).sum(dim=1)
    assert int(lengths.max()) < TINY.text_encoder_2.max_length
    assert int(t5.max()) < TINY.text_encoder_2.vocab_size
    assert int(clip.max()) < TINY.text_encoder.vocab_size
    words = torch.tensor([len(prompt.split()) for prompt in corpus])
    assert float(lengths.float().mean()) < 1.3 * float(words.float().mean()) + 1  # and the end token


class Straight:
    """A flow whose trajectories are straight lines to `picture`: v = noise - picture everywhere on them."""

    def __init__(self, picture: Any) -> None:
        self.picture = picture

    def __call__(self, x: Any, source: Any, pooled: Any, text: Any, time: Any, guidance: Any) -> Any:
        return (x - self.picture) / time.clamp(min=1e-6)[:, None, None]


def test_consistency_holds_for_a_straight_flow() -> None:
    picture = torch.randn(6, 4, 8)
    nothing = torch.empty(0)
    batch = distill.Conditioned(picture, nothing, nothing, nothing, nothing, nothing, torch.ones(6))
    flow: Any = Straight(picture)
    for _ in range(10):
        assert float(distill.consistency_loss(flow, flow, flow, batch)) < 1e-8


def test_guidance_of_1_is_the_instruction_alone_and_more_goes_beyond() -> None:
    told = torch.tensor([1.0, 2.5, 4.0])
    one, zero = torch.ones(3, 4), torch.zeros(3, 4)
    batch = distill.Conditioned(torch.randn(3, 4, 8), torch.empty(0), one, one, zero, zero, told)

    def teacher(x: Any, source: Any, pooled: Any, text: Any, time: Any, guidance: Any) -> Any:
        assert torch.equal(guidance, torch.ones(3))
        return pooled[:, :1, None].expand_as(x)  # 1 with the instruction, 0 without

    def student(x: Any, source: Any, pooled: Any, text: Any, time: Any, guidance: Any) -> Any:
        return torch.tensor([1.0, 1.5, 2.0])[:, None, None].expand_as(x)

    networks: tuple[Any, Any, Any] = (student, None, teacher)
    assert float(distill.guidance_loss(*networks, batch)) < 1e-12


def test_phases_end_where_the_four_step_schedule_steps(tiny_bundle: Path) -> None:
    from kontext.runtime.bundle import Bundle
    from kontext.runtime.sampler import schedule

    edges = distill.phase_edges("cpu").numpy()
    assert np.abs(edges - schedule(4, 64, Bundle.open(tiny_bundle).sampler)).max() < 2e-3


def test_the_pool_replaces_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ENCODE_BATCH", 4)
    edits = pool.EditPool(lambda images: torch.zeros(len(images), 16, 16, 16), size=8, seed=[0])  # type: ignore[arg-type]
    nothing = torch.zeros(64, 64)
    for number in range(11):
        edits.insert(True, (nothing, nothing, str(number)))
    assert sorted(int(prompt) for *_, prompt in edits.pairs[True]) == list(range(3, 11))
    edits.add(60)
    assert len(edits.pairs[True]) == 8
    assert not {str(number) for number in range(11)} & {prompt for *_, prompt in edits.pairs[True]}
    batch = edits.sample(5)
    assert batch.target.shape == (5, 64, 64)
    assert batch.source.shape[1] in (0, 64)
    assert len(batch.prompts) == 5


def test_the_autoencoder_starts_as_a_nearly_linear_map() -> None:
    from kontext.model import Autoencoder

    model = Autoencoder(SMALL.autoencoder)
    train_autoencoder.initialize(model)
    assert float(model.encoder.mid.block_1.conv2.weight.abs().max()) == 0
    _, log_variance = model.encoder.moments(torch.zeros(1, 3, 32, 32))
    assert float(log_variance.mean()) == pytest.approx(-5, abs=0.5)


def test_an_unknown_stage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--stages", "flow,magic"])
    assert train.main() == 2
    assert capsys.readouterr().err.startswith("error: unknown stage magic")


def test_the_embedded_model_stays_below_16_megabytes() -> None:
    config: KontextConfig = TINY
    network = KontextNetwork(config)
    from kontext.model import Autoencoder

    parameters = sum(p.numel() for p in network.parameters())
    parameters += sum(p.numel() for p in Autoencoder(config.autoencoder).parameters())
    assert 2 * parameters < 16e6  # bf16


def test_the_foreground_weighs_more_whether_it_changes_or_stays() -> None:
    source = torch.zeros(1, 5, 8)
    source[:, 1] = 1.0  # an object that stays
    target = source.clone()
    target[:, 4] = 1.0  # and one that is added
    weight = train_flow.foreground_weight(source, target)
    assert float(weight.mean()) == pytest.approx(1)
    assert torch.allclose(weight[0, [1, 4]] / weight[0, 0], torch.tensor(1 + train_flow.FOREGROUND_WEIGHT))
    alone = train_flow.foreground_weight(target[:, :0], target)
    assert torch.equal(alone, weight)


def test_a_shown_mean_starts_at_the_first_value() -> None:
    smooth = run_state.Smooth()
    for value in (4.0, 2.0):
        smooth.add(value)
    assert smooth.value == 3.0
