"""The edit benchmark on a small bundle: its stages, its operations counted by PyTorch, and its reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.bench import cli  # noqa: E402
from kontext.bench.fullsize import edit  # noqa: E402
from kontext.runtime.bundle import GRAPHS, Bundle  # noqa: E402


def test_a_whole_edit_and_its_reference(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's fp32 velocity is PyTorch's, whose blocks are loaded one by one."""
    monkeypatch.setattr(edit, "MATRIX", 64)
    output = tmp_path / "edit.json"
    words = [
        "--size",
        "128x128",
        "--steps",
        "3",
        "--backends",
        "onnxruntime",
        "--reference",
        "--json",
        str(output),
    ]
    assert cli.main(["fullsize-edit", str(tiny_bundle), *words]) == 0
    result = json.loads(output.read_text())
    measured = result["backends"]["onnxruntime"]
    assert set(measured["stages"]) == set(measured["peaks"]) == set(measured["anonymous"]) == set(GRAPHS)
    assert all(0 < measured["anonymous"][graph] <= measured["peaks"][graph] for graph in GRAPHS)
    assert [len(measured["stages"][name]) for name in ("transformer", "modulation")] == [3, 1]
    assert measured["finite"]
    assert len(measured["reference"]["relative_errors"]) == 2
    assert max(measured["reference"]["relative_errors"]) < 1e-5
    assert measured["peak_bytes"] == max(measured["peaks"].values())
    text = capsys.readouterr().out
    assert "transformer (a step)" in text
    assert "128x128 with one reference, 3 steps" in text


def test_operations_of_a_step_are_pytorchs(tiny_bundle: Path) -> None:
    """By its counter, of the blocks: what is outside of them is left out."""
    from torch.utils.flop_counter import FlopCounterMode

    from kontext.bench.limits import step_flops
    from kontext.export.graph.interface import network_interface
    from kontext.model.build_network import build_network
    from kontext.runtime.backends.torch.backend import read_config

    bundle = Bundle.open(tiny_bundle)
    config = read_config(bundle)
    side = 128 // (2 * config.autoencoder.downscale)
    sizes = {"batch": 1, "target_tokens": side**2, "reference_tokens": side**2}
    text = config.text_encoder_2.max_length
    sizes["text_tokens + target_tokens + reference_tokens"] = text + 2 * side**2
    shapes = network_interface("transformer", config).inputs.values()
    with torch.device("meta"):
        network = build_network("transformer", config)
        inputs = [
            torch.empty([sizes[each] if isinstance(each, str) else each for each in shape])
            for shape in shapes
        ]
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    outside = (
        2
        * config.transformer.hidden_size
        * (
            2 * side**2 * config.transformer.in_channels  # img_in
            + text * config.transformer.text_dim  # txt_in
            + side**2 * config.transformer.in_channels  # final_layer
        )
    )
    assert step_flops(bundle, 128, 128) == counter.get_total_flops() - outside


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "big"], "--size takes"),
        (["--steps", "0"], "--steps must be"),
        (["--backends", "abacus"], "--backends"),
    ],
)
def test_wrong_flags(
    words: list[str], message: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fullsize-edit", str(tiny_bundle), *words]) == 2
    assert message in capsys.readouterr().err
