"""Tables of fidelity: ours and the peers in one table by class and bits, floors, details, and results from before."""

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
        "tiny-int8": entry(8.2, 40, "int8", activations=["int8"], scheme="W8A8 per token"),
        "tiny-int4": entry(
            4.7,
            25,
            "int4",
            scheme="W4A16",
            places={"velocity_snr": "1", "psnr": "1="},
            best=["velocity_snr"],
            intervals={"velocity_snr": [24.04, 26.5], "lost_edits": [0, 0.1]},
        ),
        "tiny-int4-on-cpu": entry(4.7, 24, "int4", scheme="W4A8", on_cpu=True),
    },
    "peers": {
        "bnb-nf4": entry(4.5, 20, "NF4, blocks of 64", library="bitsandbytes 0.50.2", scheme="W4A16"),
        "gguf-q5_0": entry(5.5, 26, "Q5_0", library="gguf 0.19.0", scheme="W5A16"),
    },
    "floors": {
        "tiny-int8-inputs-alone": entry(
            8.2, 41, "int8", activations=["int8"], scheme="W8A8 per token", part="inputs"
        ),
    },
    "absent_measures": {"lpips": "lpips is not installed"},
    "machine": MACHINE,
}


def test_rows_go_by_class_and_bits() -> None:
    table, _ = fidelity_tables.tables(RESULT)
    assert [row[:5] for row in table.rows] == [
        ["W8A8 per token", "kontext int8", "8.20", "- / -", "40.0"],
        ["W5A16", "gguf-q5_0", "5.50", "- / -", "26.0"],
        ["W4A16", "bnb-nf4", "4.50", "- / -", "20.0"],
        ["W4A16", "kontext int4, weights only", "4.70", "1 / 1=", "**25.0** [24.0, 26.5]"],
        ["W4A8", "kontext int4, on a CPU", "4.70", "- / -", "24.0"],
    ]
    assert table.rows[0][-3:] == ["30.0", "0.9500", "+5.0"]
    assert table.rows[3][-1] == "+5.0 [+0.0, +10.0]"
    assert "FLIP" not in table.header  # not measured there
    assert "95 % intervals" in fidelity_tables.footer(RESULT)


def test_floors_are_shown_beside_their_bundles() -> None:
    _, floors = fidelity_tables.tables(RESULT)
    assert floors.rows == [["INT8 inputs alone", "kontext int8", "41.0", "30.0", "40.0", "30.0"]]


def test_results_from_before_classes_have_tables_too() -> None:
    before = {
        **RESULT,
        "bundles": {"tiny-int8": entry(8.2, 40, "int8")},
        "peers": {"bnb-nf4": entry(4.5, 20, "NF4")},
    }
    before["peers"]["bnb-nf4"]["library"] = "bitsandbytes 0.50.2"
    del before["floors"]
    (table,) = fidelity_tables.tables(before)
    assert [row[:5] for row in table.rows] == [
        ["-", "bnb-nf4", "4.50", "- / -", "20.0"],
        ["-", "kontext int8", "8.20", "- / -", "40.0"],
    ]
    assert "intervals" not in fidelity_tables.footer(before)


def test_two_bundles_of_one_format_keep_their_names() -> None:
    bundles = {
        "plain": entry(4.5, 20, "int4"),
        "kontext-tiny-branch": entry(4.7, 25, "int4"),
        "half": entry(None, 60, "fp16"),
    }
    names = fidelity_tables.titles({**RESULT, "bundles": bundles, "peers": {}})
    assert names == {"plain": "plain", "kontext-tiny-branch": "kontext branch", "half": "kontext fp16"}


def test_details_say_who_did_what() -> None:
    details, steps = fidelity_tables.detail_tables(RESULT)
    assert details.rows[2] == ["bnb-nf4", "NF4, blocks of 64, bitsandbytes 0.50.2", "5.50", "0.9900"]
    assert details.rows[0][1] == "int8, int8 activations, this exporter"
    assert steps.header[1:] == [
        "SNR, step 1",
        "SNR, step 2",
        "worst step",
        "distance, step 1",
        "distance, step 2",
    ]
    assert steps.rows[0][1:4] == ["41.0", "39.0", "39.0"]
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
