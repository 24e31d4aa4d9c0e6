"""Results with pictures for reports: made of arithmetic, no model runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.bench.pictures import REFERENCE, SOURCE, PictureFolder
from kontext.decibels import psnr

RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results"
SCRIPT = "</h3><script>document.title = 'taken'</script><img src=http://example.com/x>"
KINDS = ("recolour", "text", SCRIPT)
NOISE = {"int8": 2, "int4": 12}
"""Bundle → standard deviation of the noise that makes its pictures differ from the reference's."""


def drawn(number: int, side: int, rng: np.random.Generator) -> Image.Image:
    """Smooth colours with a grain, about as hard to compress as a photograph."""
    x, y = np.meshgrid(np.linspace(0, 6, side), np.linspace(0, 6, side))
    planes = [127 + 90 * np.sin(x * (1 + number % 3) + y * channel + number) for channel in (0.3, 1, 2)]
    grain = rng.normal(0, 4, (side, side, 3))
    return Image.fromarray(np.clip(np.stack(planes, 2) + grain, 0, 255).astype(np.uint8))


def write_fidelity(folder: Path, edits: int, side: int, distinct: int = 3) -> Path:
    """A result of `edits` edits and its pictures; only `distinct` of them are drawn, the others are the same files."""
    rng = np.random.default_rng(0)
    pictures = PictureFolder.prepare(folder / "pictures")
    each: dict[str, list[float]] = {name: [] for name in NOISE}
    for number in range(min(distinct, edits)):
        source, reference = drawn(number + 7, side, rng), drawn(number, side, rng)
        pictures.add(number, SOURCE, None if number == 1 else source)
        pictures.add(number, REFERENCE, reference)
        for name, strength in NOISE.items():
            noisy = np.asarray(reference) + rng.normal(0, strength * (1 + number), (side, side, 3))
            output = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            pictures.add_output(number, name, output)
            each[name].append(round(psnr(output, reference), 2))
    file = folder / "fidelity.json"
    named = pictures.as_json(file)
    named["edits"] = [named["edits"][number % distinct] for number in range(edits)]
    entry: dict[str, Any] = {
        "velocity_snr_steps": [20.0, 10.0],
        "latent_distance_steps": [0.1, 0.2],
        "lost_edits": 0.0,
    }
    bundles = {
        name: {
            **entry,
            "precision": name,
            "bits_per_weight": 8.25 if name == "int8" else 4.5,
            "bits_per_weight_files": 9.0,
            "velocity_snr": 30.0 if name == "int8" else 15.0,
            "psnr": float(np.mean(values)),
            "psnr_each": [values[number % distinct] for number in range(edits)],
            "flip_each": [0.01 * (1 + number % distinct) for number in range(edits)],
            "success_each": [number % 2 == 0 for number in range(edits)],
            "intervals": {"psnr": [float(np.mean(values)) - 1, float(np.mean(values)) + 1]},
        }
        for name, values in each.items()
    }
    result = {
        "what": "fidelity",
        "model": "kontext-test",
        "reference": {"name": "fp32", "success": 1.0, "success_each": [True] * edits},
        "steps": 2,
        "edits": edits,
        "data": None,
        "keys": [f"key-{number}" for number in range(edits)],
        "kinds": [KINDS[number % 3] for number in range(edits)],
        "prompts": [SCRIPT if number == 2 else f"make it & “{number}”" for number in range(edits)],
        "seed": 0,
        "bundles": bundles,
        "peers": {"gguf-q4_0": {**entry, **bundles["int4"], "library": "gguf 1", "bits_per_weight": 4.4}},
        "absent_measures": {},
        "machine": json.loads((RESULTS / "latency.json").read_text())["machine"],
        "provenance": {
            "command": "kontext-bench fidelity int8 --seed 0",
            "source": {"commit": "0123456789abcdef", "modified": True},
            "started": "2026-12-01T00:00:00Z",
            "seconds": 300.0,
            "seed": 0,
        },
        "pictures": named,
    }
    file.write_text(json.dumps(result))
    return file


@pytest.fixture(scope="session")
def fidelity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of 6 edits of 96 pixels. Do not change it: copy it."""
    return write_fidelity(tmp_path_factory.mktemp("fidelity"), 6, 96)


@pytest.fixture(scope="session")
def changed(fidelity: Path) -> Callable[..., Path]:
    """The same result with other values, beside the same pictures."""

    def change(name: str, **values: Any) -> Path:
        file = fidelity.with_name(f"{name}.json")
        file.write_text(json.dumps({**json.loads(fidelity.read_text()), **values}))
        return file

    return change


@pytest.fixture(scope="session")
def sensitivity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of sensitivity with one network of 12 layers."""
    layers = {
        f"double_blocks.{n}.img_mlp.0.weight": {"shape": [4, 4], "errors": {"int8": 1e-5, "int4": 1e-3 * n}}
        for n in range(12)
    }
    file = tmp_path_factory.mktemp("sensitivity") / "sensitivity.json"
    file.write_text(
        json.dumps(
            {
                "format": "kontext-sensitivity",
                "format_version": 1,
                "model": "kontext-test",
                "method": "velocity",
                "options": ["int8", "int4"],
                "about": {},
                "sums": {"int4": {"whole": 0.0178, "sum": 0.016}},
                "pictures": [],
                "layers": {"transformer": layers},
            }
        )
    )
    return file
