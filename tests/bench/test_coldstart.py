"""Cold start: the commands of both sides, and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from kontext.bench import coldstart
from kontext.bench.inputs import picture_and_prompt
from kontext.bench.process_cost import run_process

pytestmark = [
    # The random model's small tokenizer splits a prompt into more tokens than fit.
    pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning"),
]


MACHINE = {
    "cpu": "Abacus",
    "cores": 2,
    "memory_gib": 24.0,
    "gpu": [],
    "python": "3.11.7",
    "libraries": {"onnxruntime": "1.32.0", "numpy": "2.4.6"},
}


def cost(seconds: float, mebibytes: float) -> dict[str, Any]:
    return {
        "seconds": {"median": seconds, "p95": seconds * 1.1, "count": 5},
        "peak_bytes": {"median": mebibytes * 2**20, "p95": mebibytes * 2**20, "count": 5},
    }


def test_cold_start_commands_make_their_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    picture, prompt = picture_and_prompt(None, None, (128, 128))
    settings = {"steps": 1, "guidance": 2.5, "seed": 3, "size": (128, 128)}
    commands = coldstart.edit_commands(tiny_bundle, None, tmp_path, picture, prompt, **settings)  # type: ignore[arg-type]
    (words,) = commands.values()
    assert run_process(words).peak_bytes > 2**24
    assert PIL.Image.open(tmp_path / "kontext-edit.png").size == (128, 128)


def test_cold_start_table_and_footer() -> None:
    result = {
        "steps": 4,
        "size": [128, 128],
        "sides": {"kontext-edit": cost(1.0, 100), "diffusers": cost(5.5, 520)},
        "imports": {"nothing": cost(0.02, 10), "kontext.runtime": cost(0.15, 60)},
        "psnr_db": 61.2,
        "machine": MACHINE,
    }
    (table,) = coldstart.tables(result)
    assert table.rows[0] == ["kontext-edit", "1.00", "1.10", "5.50x", "100", "5.20x"]
    assert table.rows[1] == ["diffusers", "5.50", "6.05", "1.00x", "520", "1.00x"]
    assert "takes 0.13 s" in coldstart.footer(result)
    assert "Abacus, 2 cores, 24 GiB; onnxruntime 1.32.0; Python 3.11.7" in coldstart.footer(result)
