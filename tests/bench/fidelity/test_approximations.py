"""The approximations' measurement on a random model, its tables, and the work that is counted from shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kontext.bench import cli
from kontext.bench.fidelity import approximations
from kontext.bench.fidelity.approximations import Setting
from kontext.bench.limits import step_work
from kontext.model.config import TransformerConfig
from kontext.tiny.edits import KINDS


def test_steps_pictures_and_verdicts_are_compared(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (Setting(cache=1e-9), Setting(cache=1e9), Setting(reuse_reference=2))
    measure = approximations.measure_approximations
    monkeypatch.setattr(
        approximations,
        "measure_approximations",
        lambda *words, **names: measure(*words, **names, settings=settings),
    )
    output = tmp_path / "approximations.json"
    words = ["approximations", str(tiny_bundle), "--steps", "3", "-n", "1", "--json", str(output)]
    assert cli.main(words) == 0
    result = json.loads(output.read_text())
    edits = result["edits"]
    assert edits == len(KINDS)
    never, always, reuse = result["settings"]
    assert (never["computed_steps"], never["psnr"]) == (3 * edits, 100)
    assert always["computed_steps"] == edits  # the first of each
    assert always["psnr"] < 60
    assert (reuse["computed_steps"], reuse["reference_steps"]) == (3 * edits, 2 * edits)
    said = capsys.readouterr().out
    assert "`--cache 1e+09`" in said
    assert " 67% " in said
    assert "--reuse-reference, between" in said


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["approximations", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_work_of_a_step() -> None:
    """Known figures of FLUX.1 Kontext: 112 TFLOP in linears and 53 in attention; and by PyTorch's own count."""
    exact = approximations.work()[0]
    assert exact["linears"] / 1e12 == pytest.approx(112, rel=0.01)
    assert exact["attention"] / 1e12 == pytest.approx(53, rel=0.01)
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    from kontext.bench.gpu.step import random_inputs
    from kontext.model.transformer import Transformer

    config = TransformerConfig(
        hidden_size=128,
        num_heads=2,
        num_double_blocks=2,
        num_single_blocks=3,
        axes_dim=(8, 28, 28),
        text_dim=64,
    )
    model = Transformer(config)
    given = random_inputs(config, 24, 64, 40, torch.device("cpu"), torch.float32)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**given)
    around = 2 * 128 * ((64 + 40) * 64 + 24 * 64 + 64 * 64)  # what enters and leaves the network
    linears, attention = step_work(config, 5, 128, 128)
    assert counter.get_total_flops() - around == linears  # on a CPU attention is not counted
    heads = (1, 2, 128, 64)
    assert attention == 5 * sdpa_flop_count(heads, heads, heads)
