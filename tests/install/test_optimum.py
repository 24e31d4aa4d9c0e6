"""`--to optimum` in the pipelines of optimum-onnx and optimum-intel, in an environment of their own, against diffusers
on the same seed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from .environments import CONSTRAINTS, ROOT, Environment

pytestmark = pytest.mark.install

CHECKPOINT = ROOT / "tiny" / "checkpoint"
PICTURE = ROOT / "examples" / "pictures" / "recolour.png"
PROGRAM = Path(__file__).with_name("optimum_pipelines.py")


@pytest.fixture(scope="module")
def optimum(
    wheel: Path, fresh: Callable[..., Environment], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    """It wants transformers 4, so of the constraints only PyTorch's holds, whose CPU build this is."""
    pins = [
        line for line in CONSTRAINTS.read_text().splitlines() if line.startswith(("torch==", "openvino=="))
    ]
    constraints = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    environment = fresh()
    environment.install(wheel, "cpu,optimum", constraints=constraints)
    environment.install(wheel, "openvino,optimum", constraints=constraints)
    yield environment
    environment.remove()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model in two formats."""
    from kontext.export.cli.main import main

    base = tmp_path_factory.mktemp("folders")
    for name in ("fp32", "fp16"):
        words = [CHECKPOINT, "--to", "optimum", f"--{name}", "-o", base / name, "--quiet"]
        assert main([str(word) for word in words]) == 0
    return {name: base / name for name in ("fp32", "fp16")}


def measured(environment: Environment, library: str, *folders: Path) -> list[list[float]]:
    said = environment.succeed("python", PROGRAM, CHECKPOINT, PICTURE, library, *folders)
    found = json.loads(next(line for line in said.splitlines() if line.startswith('{"')))
    return [found[str(folder)] for folder in folders]


def test_onnx_runtime(optimum: Environment, folders: dict[str, Path]) -> None:
    """Edits of one picture, of two of another size, with a longer prompt; and optimum's own pipeline, which draws from
    a prompt."""
    fp32, fp16 = measured(optimum, "onnxruntime", folders["fp32"], folders["fp16"])
    assert min(fp32) > 80
    assert min(fp16) > 50


def test_openvino(optimum: Environment, folders: dict[str, Path]) -> None:
    (fp32,) = measured(optimum, "openvino", folders["fp32"])
    assert min(fp32) > 80


@pytest.mark.parametrize("library", ["ORTFluxKontextPipeline", "OVFluxKontextPipeline"])
def test_the_documented_programs(optimum: Environment, folders: dict[str, Path], library: str) -> None:
    text = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8")
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if library in block]
    smaller = "guidance_scale=2.5, max_area=128**2, _auto_resize=False, height=128, width=128"
    shorter = {
        "my-optimum": str(folders["fp32"]),
        "in.png": str(PICTURE),
        "steps=28": "steps=2",
        "guidance_scale=2.5": smaller,
    }
    for documented, here in shorter.items():
        assert documented in program
        program = program.replace(documented, here)
    optimum.python(program)
    with Image.open(optimum.scratch / "out.png") as picture:
        assert picture.size == (128, 128)
