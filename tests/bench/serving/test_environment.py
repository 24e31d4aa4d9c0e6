"""The server's environment: the same versions as here, and made again when its requirements change."""

from __future__ import annotations

from pathlib import Path

from kontext.bench.serving import environment as server_environment

ROOT = Path(__file__).resolve().parents[3]


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if "==" in line]
    return dict(line.split("==") for line in lines)


def test_what_pictures_are_made_with_is_what_they_are_compared_with() -> None:
    here, there = pins(ROOT / "constraints.txt"), pins(ROOT / "constraints-serve.txt")
    for name in ("onnxruntime", "pillow", "safetensors", "tokenizers", "tqdm"):
        assert there[name] == here[name]
    assert there["numpy"].startswith("1.")  # the server's Python backend cannot read numpy 2


def test_an_environment_is_what_its_requirements_say(tmp_path: Path) -> None:
    requirements, environment = tmp_path / "requirements.txt", tmp_path / "environment"
    requirements.write_text("a==1\n")
    assert not server_environment.is_ready(environment, requirements)
    environment.mkdir()
    (environment / server_environment.STAMP).write_text(server_environment.digest(requirements))
    assert server_environment.is_ready(environment, requirements)
    requirements.write_text("a==2\n")
    assert not server_environment.is_ready(environment, requirements)
