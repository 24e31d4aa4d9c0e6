"""What to type for a missing library: the command fits how the package was installed, and every extra is known."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kontext import installation
from kontext.installation import EXTRAS, ROOT, VERSION, install_command, missing_library

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")

UNLIKE_THEIR_MODULES = {
    "pillow": "PIL",
    "nvidia-ml-py": "pynvml",
    "nvidia-modelopt": "modelopt",
    "optimum-intel": "optimum",
    "optimum-onnx": "optimum",
    "optimum-quanto": "optimum",
    "scikit-image": "skimage",
    "tensorrt-rtx": "tensorrt_rtx",
    "onnxruntime-gpu": "onnxruntime",
}
"""Distribution → its module, where the names differ by more than - for _."""

NO_LIBRARIES = {
    "cyclonedx-bom",
    "pip-audit",
    "uv",
    "build",
    "datasets",
    "hypothesis",
    "jsonschema",
    "axe-selenium-python",
    "mypy",
    "openai",
    "schemathesis",
    "selenium",
    "pytest",
    "pytest-cov",
    "pytest-xdist",
    "ruff",
}
"""Tools that only tests and CI run."""


def installed_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    class Left:
        """What setuptools leaves in a clone."""

        def read_text(self, _name: str) -> None:
            return None

    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [Left(), Installed()])
    if origin is None:
        monkeypatch.setattr(installation, "ROOT", Path("/nowhere"))


@pytest.mark.parametrize(
    ("editable", "command"), [(True, "pip install -e '.[gpu]'"), (False, "pip install '.[gpu]'")]
)
def test_from_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, editable: bool, command: str) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    installed_from(monkeypatch, {"url": clone.as_uri(), "dir_info": {"editable": editable}})
    assert install_command("gpu") == command.replace("'.[", f"'{clone}[")
    monkeypatch.chdir(clone)
    assert install_command("gpu") == command


def test_a_clone_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_from(monkeypatch, {"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert install_command("gpu") == "pip install 'kontext-export[gpu]'"


def test_from_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "kontext_export-0.1.0-py3-none-any.whl"
    installed_from(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert install_command("gpu") == "pip install 'kontext-export[gpu]'"
    wheel.touch()
    assert install_command("gpu") == f"pip install 'kontext-export[gpu] @ {wheel.as_uri()}'"


def test_from_an_address_and_from_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    url, commit = "https://example.org/kontext.git", "0123abc"
    installed_from(monkeypatch, {"url": url, "vcs_info": {"vcs": "git", "commit_id": commit}})
    assert install_command("gpu", "serve") == f"pip install 'kontext-export[gpu,serve] @ git+{url}@{commit}'"
    installed_from(monkeypatch, {"url": "https://example.org/k.whl", "archive_info": {}})
    assert install_command("gpu") == "pip install 'kontext-export[gpu] @ https://example.org/k.whl'"
    installed_from(monkeypatch, None)
    assert install_command("gpu") == "pip install 'kontext-export[gpu]'"
    assert install_command() == "pip install kontext-export"


def test_a_copy_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [])
    monkeypatch.chdir(ROOT)
    assert install_command("cpu") == "pip install '.[cpu]'"
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    assert install_command("cpu") == "pip install 'kontext-export[cpu]'"


def test_missing_libraries() -> None:
    assert missing_library("matplotlib.backends") == (
        f"this needs matplotlib, which is not installed: {install_command('export')}"
    )
    assert missing_library("numpy") == f"this needs numpy, which is not installed: {install_command()}"
    assert missing_library("kontext.nothing") is None


def test_the_version_is_that_of_the_distribution() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_every_optional_library_has_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {"": project["dependencies"], **project["optional-dependencies"]}
    modules: dict[str, set[str]] = {}
    for extra, requirements in declared.items():
        for requirement in requirements:
            name = re.split(r"[\[<>=!~ ;]", requirement)[0]
            module = UNLIKE_THEIR_MODULES.get(name, name.replace("-", "_"))
            if name not in {"kontext-export", *NO_LIBRARIES}:
                modules.setdefault(module, set()).add(extra)
    assert set(modules) == set(EXTRAS)
    assert all(EXTRAS[module] in extras for module, extras in modules.items())
