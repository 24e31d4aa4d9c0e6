"""Reports that survive a file, relative errors against their definition, and the estimate's parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.quant.options import Option  # noqa: E402
from kontext.quant.recipe import Layer  # noqa: E402
from kontext.quant.sensitivity import (  # noqa: E402
    LayerSensitivity,
    Sensitivity,
    kind_of,
    measured_prior,
    normal_error,
    prior_sensitivity,
    relative_error,
    round_trip,
)


def report() -> Sensitivity:
    layer = LayerSensitivity(
        (64, 32), {"int8": 1e-4, "int4": 1e-2}, {"int8": 2e-4}, {"int8": [1e-4, 1e-4, 1e-4]}
    )
    return Sensitivity(
        "model",
        "velocity",
        ["int8", "int4"],
        {"transformer": {"a.weight": layer}},
        {"int8": {"sum": 1e-4, "whole": 1.1e-4}},
        [{"network": "transformer", "psnr": 40.0}],
        {"count": 2},
    )


def test_a_report_survives_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report().as_json()))
    assert Sensitivity.load(path) == report()


def damage(data: dict[str, Any], *keys: str, value: Any) -> dict[str, Any]:
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return data


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), "other"),
        (("format_version",), 99),
        (("method",), "guess"),
        (("layers",), []),
        (("options",), ["int3"]),
        (("layers", "transformer", "a.weight", "errors"), {"int8": -1}),
        (("layers", "transformer", "a.weight", "shape"), [1]),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, keys: tuple[str, ...], value: Any) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(damage(report().as_json(), *keys, value=value)))
    with pytest.raises(KontextError, match=r"report\.json is not a report of kontext-export sensitivity"):
        Sensitivity.load(path)


def test_a_report_of_another_model_is_refused() -> None:
    assert report().error("transformer", "a.weight", (64, 32), Option("int8")) == 1e-4
    for weight, shape in (("b.weight", (64, 32)), ("a.weight", (32, 64))):
        with pytest.raises(KontextError, match=r"is of model in int8, int4 and lacks transformer:"):
            report().error("transformer", weight, shape, Option("int8"))


def test_relative_error_is_that_of_the_layer_s_output() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 64, generator=generator) * torch.rand(64, generator=generator)
    weight, noise = torch.randn(64, 8, generator=generator), torch.randn(64, 8, generator=generator)
    expected = float(((inputs @ noise).norm() / (inputs @ weight).norm()) ** 2)
    moments = (inputs.t() @ inputs)[None]
    assert relative_error(weight, weight + noise, moments) == pytest.approx(expected, rel=1e-4)
    assert relative_error(weight, weight + noise, None) == pytest.approx(
        float((noise.norm() / weight.norm()) ** 2)
    )
    assert relative_error(torch.zeros(4, 4), torch.zeros(4, 4), None) == 0


@pytest.mark.parametrize(("layer", "least", "most"), [("fp8", 28, 34), ("int8", 36, 46), ("int4", 18, 23)])
def test_a_round_trip_of_a_normal_weight(layer: str, least: float, most: float) -> None:
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    error = relative_error(weight, round_trip(weight, Layer(layer), torch.float32, None), None)
    assert 10 ** (-most / 10) < error < 10 ** (-least / 10)


def test_a_branch_takes_its_share_of_a_normal_weight() -> None:
    plain, branched = (normal_error(Option("int4", rank), (256, 128), 4) for rank in (0, 16))
    weight = torch.randn(256, 128, generator=torch.Generator().manual_seed(1))
    measured = relative_error(weight, round_trip(weight, Layer("int4", 16), torch.float32, None), None)
    assert branched < plain
    assert branched == pytest.approx(measured, rel=0.15)


def test_kinds_have_no_block_numbers() -> None:
    assert (
        kind_of("transformer", "double_blocks.11.img_mlp.2.weight")
        == "transformer/double_blocks.img_mlp.2.weight"
    )
    assert kind_of("text_encoder_2", "encoder.block.3.layer.0.SelfAttention.q.weight") == (
        "text_encoder_2/encoder.block.layer.0.SelfAttention.q.weight"
    )


def test_gains_come_from_a_measured_report() -> None:
    layer = LayerSensitivity((8, 8), {"int8": 2e-4}, {"int8": 1e-4})
    measured = Sensitivity(
        "model", "velocity", ["int8"], {"transformer": {"b.0.c.weight": layer, "b.1.c.weight": layer}}
    )
    assert measured_prior(measured, "int8") == {"transformer/b.c.weight": pytest.approx(4.0)}


def test_each_block_adds_its_part() -> None:
    name = "double_blocks.0.img_mlp.2.weight"
    assert prior_sensitivity("transformer", name, 19) == pytest.approx(
        prior_sensitivity("transformer", name, 1) / 19
    )
    assert prior_sensitivity("transformer", "no.such.layer", 1) > 0
    assert prior_sensitivity("nowhere", "no.such.layer", 2) == 0.5
