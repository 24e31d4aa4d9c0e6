"""Speed of quantized steps: both sides compute the same step of the same weights; the table and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.bench.cli import main
from kontext.bench.quantspeed import benchmark as quantspeed
from kontext.bench.quantspeed.step import bundle_step, diffusers_step
from kontext.export.calibration.samples import MIN_SAMPLES, read_samples

MACHINE = {"cpu": "Abacus", "cores": 2, "memory_gib": 24.0, "gpu": [], "python": "3.11.7", "libraries": {}}


def test_both_sides_are_given_the_same_step(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    """diffusers in bf16 is as near to the fp32 bundle as bf16 allows."""
    pytest.importorskip("diffusers")
    ours = bundle_step(tiny_bundle, 16)()
    theirs = diffusers_step(tiny_checkpoint, 16)()
    assert ours.shape == theirs.shape == (1, 16, 64)
    assert 25 < quantspeed.snr(theirs, ours) < 70


def test_openvino_is_given_the_same_step(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    expected = bundle_step(tiny_bundle, 16)()
    assert quantspeed.snr(bundle_step(tiny_bundle, 16, "openvino-fp32")(), expected) > 80


def test_sizes_follow_the_width() -> None:
    config = quantspeed.config_of(1024)
    assert config.transformer.head_dim == sum(config.transformer.axes_dim) == 128
    assert config.transformer.num_heads == 8


def side(median: float, **more: Any) -> dict[str, Any]:
    summary = {"median": median, "p95": median * 1.1, "count": 7}
    return {"seconds": summary, "snr": 20.0, "resident_bytes": 2**28, "peak_bytes": 2**29, **more}


def test_no_error_is_given_of_static_scales(tmp_path: Path) -> None:
    """They come from other inputs than the measured step's."""
    assert len(read_samples(quantspeed.write_samples(tmp_path / "samples")).samples) == MIN_SAMPLES
    result = {
        "hidden": 512,
        "blocks": [2, 4],
        "tokens": [256, 256],
        "threads": 2,
        "machine": MACHINE,
        "sides": {"fp32": side(2.0), "OpenVINO int8-static": side(1.0) | {"snr": None}},
    }
    (table,) = quantspeed.tables(result)
    assert [row[-1] for row in table.rows] == ["-", "-"]
    assert "so no SNR is given" in quantspeed.footer(result)


def test_ratios_are_of_medians() -> None:
    result = {
        "hidden": 1024,
        "blocks": [2, 4],
        "tokens": [1024, 1024],
        "threads": 2,
        "sides": {
            "fp32": side(2.0, weight_bytes=400 * 2**20),
            "int4": side(0.8, weight_bytes=60 * 2**20),
            "diffusers bf16": side(1.6),
        },
        "machine": MACHINE,
    }
    (table,) = quantspeed.tables(result)
    assert table.rows[1] == ["int4", "800.0", "880.0", "2.50x", "2.00x", "60", "256", "512", "20.0"]
    assert table.rows[2][3:6] == ["1.25x", "1.00x", "-"]
    assert "2 + 4 blocks" in quantspeed.footer(result)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hidden", "500"], "--hidden must be at least 512"),
        (["--hidden", "600"], "--hidden must be a multiple of 128"),
        (["--tokens", "1000"], "--tokens must be a power of two"),
        (["--formats", "int8,int5"], "not 'int5'"),
        (["--folder", "not-there"], "not-there is not a folder"),
        (["--repeat", "0"], "--repeat must be at least 1"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantspeed", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
