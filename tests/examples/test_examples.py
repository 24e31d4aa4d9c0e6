"""Every example and the README's Python run as their documentation says, on the embedded model."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.runtime import Pipeline

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PICTURES = sorted((EXAMPLES / "pictures").glob("*.png"))


@pytest.fixture
def bundle(embedded: dict[str, Path]) -> Path:
    return embedded["fp32"]


def prompt_of(picture: Path) -> str:
    return picture.with_suffix(".txt").read_text(encoding="utf-8").strip()


def run(folder: Path, *words: object) -> str:
    """Runs an example in `folder`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def edited(bundle: Path, picture: Path, steps: int) -> np.ndarray:
    with Image.open(picture) as source:
        return np.asarray(
            Pipeline.load(bundle, device="cpu").edit(source, prompt_of(picture), steps=steps)
        ).astype(int)


def test_pictures_have_instructions_and_suffice_for_calibration() -> None:
    from kontext.export.calibration.samples import MIN_SAMPLES, read_samples

    samples = read_samples(EXAMPLES / "pictures")
    assert len(samples.samples) == len(PICTURES) >= MIN_SAMPLES
    assert not samples.skipped


def test_edit(bundle: Path, tmp_path: Path) -> None:
    assert run(tmp_path, EXAMPLES / "edit.py", bundle, "--steps", 4) == "wrote edited.png\n"
    expected = edited(bundle, EXAMPLES / "pictures" / "recolour.png", steps=4)
    assert np.array_equal(pixels(tmp_path / "edited.png"), expected)


def test_batch(bundle: Path, tmp_path: Path) -> None:
    told = run(tmp_path, EXAMPLES / "batch.py", bundle, "--steps", 4, "--output", "out")
    assert told.splitlines() == [f"{path.name}: {prompt_of(path)}" for path in PICTURES]
    for path in PICTURES:
        assert pixels(tmp_path / "out" / path.name).shape == pixels(path).shape
    last = PICTURES[-1]
    assert np.abs(pixels(tmp_path / "out" / last.name) - edited(bundle, last, steps=4)).max() <= 1


def test_several_references(bundle: Path, tmp_path: Path) -> None:
    run(tmp_path, EXAMPLES / "several_references.py", bundle, "--steps", 2)
    one = edited(bundle, EXAMPLES / "pictures" / "character.png", steps=2)
    assert pixels(tmp_path / "several.png").shape == one.shape
    assert not np.array_equal(pixels(tmp_path / "several.png"), one), "the second reference changed nothing"


def test_server_client(bundle: Path, tmp_path: Path) -> None:
    from kontext.bench.serving.environment import is_ready
    from kontext.bench.serving.local_server import LocalServer
    from kontext.export.cli.main import main

    if not is_ready():
        pytest.skip("needs NVIDIA Triton Inference Server in build/server: `make server`")
    repository = tmp_path / "repository"
    assert main([str(bundle), "--triton", str(repository), "--quiet"]) == 0
    with LocalServer(repository / "models") as server:
        run(tmp_path, EXAMPLES / "server_client.py", server.http, "--steps", 4)
    for path in PICTURES:
        assert pixels(tmp_path / "served" / path.name).shape == pixels(path).shape
    first = PICTURES[0]
    assert np.abs(pixels(tmp_path / "served" / first.name) - edited(bundle, first, steps=4)).max() <= 1


@pytest.mark.parametrize("name", ["edit.py", "batch.py", "several_references.py"])
def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "error: my-bundle does not exist\n"


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "server_client.py"), "http://127.0.0.1:1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "error: 127.0.0.1:1: connection refused\n"


def test_cpp(bundle: Path, tmp_path: Path) -> None:
    sdk = ROOT / "build" / "onnxruntime-sdk"
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if not (sdk / "lib").exists():
        pytest.skip("needs ONNX Runtime's SDK in build/onnxruntime-sdk: `make sdk`")
    configure = ["cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(tmp_path / "build")]
    # One translation unit, not optimized, builds in a third of the time.
    configure += [f"-DONNXRUNTIME_ROOT={sdk}", "-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O0"]
    done = subprocess.run(configure, capture_output=True, text=True)
    if missing := re.search(r"Could NOT find (?:PNG|JPEG|nlohmann_json)", done.stderr):
        pytest.skip(f"CMake: {missing[0]}")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", str(tmp_path / "build")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    picture, output = EXAMPLES / "pictures" / "recolour.png", tmp_path / "out.png"
    program = [str(tmp_path / "build" / "my-editor"), str(bundle), str(picture), prompt_of(picture)]
    done = subprocess.run([*program, str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.abs(pixels(output) - edited(bundle, picture, steps=28)).max() <= 1
    assert subprocess.run(program, capture_output=True).returncode == 2


def test_the_readmes_python(bundle: Path, tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "my-bundle").symlink_to(bundle)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    run(tmp_path, "-c", block)
    assert pixels(tmp_path / "out.png").shape == (128, 128, 3)
