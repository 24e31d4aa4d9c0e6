"""The distributions, built once, and the environments that several tests share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .environments import CLEAN, ROOT, Environment


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed and the new files of this checkout, without what was built in it."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("clone")
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(clone: Path, folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "build", "--outdir", str(folder), *words, str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def sdist(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build(clone, folder)  # and a wheel from it
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build(clone, folder, "--wheel")
    (archive,) = folder.glob("*.whl")
    return archive


@pytest.fixture(scope="session")
def environments() -> list[Environment]:
    """Every environment that the tests have made, for what is asked of all of them at the end."""
    return []


@pytest.fixture(scope="session")
def fresh(
    environments: list[Environment], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Environment]:
    """Makes an empty environment."""

    def make(python: str = sys.executable) -> Environment:
        made = Environment.made(tmp_path_factory.mktemp("environment") / "venv", python)
        environments.append(made)
        return made

    return make


@pytest.fixture(scope="session")
def exporting(wheel: Path, fresh: Callable[..., Environment]) -> Environment:
    """The environment of the README's first command."""
    environment = fresh()
    environment.install(wheel, "cpu,export")
    return environment


@pytest.fixture(scope="session")
def bundle(exporting: Environment) -> Path:
    """The embedded model, exported by the wheel in fp32, which every version of ONNX Runtime runs."""
    exporting.succeed("kontext-export", "--fp32", "-o", "fp32", "--quiet")
    return exporting.scratch / "fp32"


@pytest.fixture(scope="session")
def fp8_bundle(exporting: Environment) -> Path:
    """What the README's second command writes."""
    exporting.succeed("kontext-export", "--fp8", "-o", "my-bundle")
    return exporting.scratch / "my-bundle"
