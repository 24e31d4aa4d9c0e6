"""Tables of fidelity: ours and the peers in one table by bits, and the details."""

from __future__ import annotations

from typing import Any

from kontext.bench.fidelity import tables as fidelity_tables

MACHINE = {"cpu": "Abacus", "cores": 2, "memory_gib": 24.0, "gpu": [], "python": "3.11.7", "libraries": {}}


def entry(bits: float | None, snr: float, precision: str, **more: Any) -> dict[str, Any]:
    return {
        "precision": precision,
        "bits_per_weight": bits,
        "bits_per_weight_files": None if bits is None else bits + 1,
        "velocity_snr": snr,
        "velocity_snr_steps": [snr + 1, snr - 1],
        "latent_distance_steps": [0.01, 0.02],
        "lost_edits": 0.05,
        "psnr": 30.04,
        "ssim": 0.95,
        "ms_ssim": 0.99,
        **more,
    }


RESULT: dict[str, Any] = {
    "model": "kontext-tiny",
    "reference": {"name": "fp32", "success": 0.25},
    "steps": 2,
    "edits": 20,
    "bundles": {
        "tiny-int8": entry(8.2, 40, "int8", activations=["int8"]),
        "tiny-int4": entry(4.7, 25, "int4"),
    },
    "peers": {"bnb-nf4": entry(4.5, 20, "NF4, blocks of 64", library="bitsandbytes 0.50.2")},
    "absent_measures": {"lpips": "lpips is not installed"},
    "machine": MACHINE,
}


def test_rows_go_by_bits() -> None:
    (table,) = fidelity_tables.tables(RESULT)
    assert [row[:4] for row in table.rows] == [
        ["bnb-nf4", "4.50", "20.0", "19.0"],
        ["kontext int4", "4.70", "25.0", "24.0"],
        ["kontext int8", "8.20", "40.0", "39.0"],
    ]
    assert table.rows[0][-3:] == ["30.0", "0.9500", "+5.0"]
    assert "FLIP" not in table.header  # not measured there


def test_two_bundles_of_one_format_keep_their_names() -> None:
    bundles = {
        "plain": entry(4.5, 20, "int4"),
        "branch": entry(4.7, 25, "int4"),
        "half": entry(None, 60, "fp16"),
    }
    names = fidelity_tables.titles({**RESULT, "bundles": bundles, "peers": {}})
    assert names == {"plain": "plain", "branch": "branch", "half": "kontext fp16"}


def test_details_say_who_did_what() -> None:
    details, steps = fidelity_tables.detail_tables(RESULT)
    assert details.rows[0] == ["bnb-nf4", "NF4, blocks of 64, bitsandbytes 0.50.2", "5.50", "0.9900"]
    assert details.rows[2][1] == "int8, int8 activations, this exporter"
    assert steps.header[1:] == ["SNR, step 1", "SNR, step 2", "distance, step 1", "distance, step 2"]
    assert fidelity_tables.absences(RESULT) == ["LPIPS: not measured (lpips is not installed)"]
    assert "bitsandbytes 0.50.2" in fidelity_tables.footer(RESULT)


def test_bundles_of_one_format_are_told_apart_by_their_inputs() -> None:
    bundles = {
        "tiny-fp8": entry(8.3, 28, "fp8", activations=["fp8"]),
        "tiny-fp8-weights": entry(8.1, 35, "fp8", activations=[]),
        "half": entry(None, 60, "fp16"),
    }
    names = fidelity_tables.titles({**RESULT, "bundles": bundles, "peers": {}})
    assert names == {
        "tiny-fp8": "kontext fp8, fp8 inputs",
        "tiny-fp8-weights": "kontext fp8, weights only",
        "half": "kontext fp16",
    }
