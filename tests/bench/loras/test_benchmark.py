"""What LoRAs cost: every part on the embedded model's bundles, the tables, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.bench.cli import main
from kontext.bench.loras import benchmark as loras

MACHINE = {"cpu": "Abacus", "cores": 2, "memory_gib": 24.0, "gpu": [], "python": "3.11.7", "libraries": {}}


def times(median: float) -> dict[str, Any]:
    return {"median": median, "p95": median * 1.1, "count": 7}


RESULT = {
    "hidden": 3072,
    "blocks": [1, 2],
    "tokens": [1024, 1024, 512],
    "rank": 32,
    "threads": 2,
    "machine": MACHINE,
    "steps": {
        "onnxruntime": {
            "without slots": {"seconds": times(2.0), "ratio": 1.0},
            "a LoRA of rank 32": {"seconds": times(2.1), "ratio": 1.034},
        }
    },
    "swaps": {"torch": {"load": times(0.02), "first": times(0.05), "later": times(0.03)}},
    "file": {
        "bytes": 500_000_000,
        "rank": 700,
        "seconds": {
            "read from the disk": times(0.5),
            "load from the disk": times(1.0),
            "read": times(0.1),
            "load": times(0.8),
        },
    },
}


def test_tables() -> None:
    steps, swaps, file = loras.tables(RESULT)
    assert steps.rows[0] == ["ONNX Runtime fp32, without slots", "2000", "2200", "-"]
    assert steps.rows[1] == ["ONNX Runtime fp32, a LoRA of rank 32", "2100", "2310", "+3.4%"]
    assert swaps.rows == [["PyTorch", "20.0", "50.0", "30.0"]]
    assert file.header[0] == "a LoRA of 500 MB"
    assert file.rows == [["plain read", "1000", "5000"], ["load_loras", "500", "625"]]
    assert "1 + 2 blocks, 1024 + 1024 image and 512 text tokens" in loras.footer(RESULT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hidden", "600"], "--hidden must be a multiple of 128"),
        (["--tokens", "1000"], "--tokens must be a power of two"),
        (["--blocks", "1"], "--blocks takes two numbers"),
        (["--rank", "33"], "--rank must be even"),
        (["--text-tokens", "513"], "--text-tokens must be from 2 to 512"),
        (["--sides", "onnxruntime,fast"], "not 'fast'"),
        (["--folder", "not-there"], "not-there is not a folder"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loras", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
