"""Rules of the house: who may import whom, nothing unpickled, packaging and documents that match the code."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 has none
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("model", "tiny", "quant", "kernels", "export", "runtime", "bench")
ANYONE = {"errors", "files", "command", "safetensors_header", "decibels"}

# design.md's table: folder -> what of this package it may import (`ANYONE` is for everyone).
MAY_IMPORT: dict[str, set[str]] = {
    "model": {"model"},
    "tiny": {"tiny", "model"},
    "quant": {"quant", "model"},
    "kernels": {"kernels"},
    "export": {"export", "model", "quant", "kernels", "runtime", "tiny"},  # calibration runs edits
    "runtime": {"runtime"},
    "bench": set(FOLDERS),
}
HEAVY = {
    *("torch", "transformers", "diffusers", "triton", "onnx", "onnx_ir", "onnxscript"),
    *("scipy", "skimage", "matplotlib"),
}
TORCH_BACKEND = "runtime/backends/torch"
"""What the files of the one part of the runtime that needs PyTorch begin with; they may import
TORCH_BACKEND_IMPORTS too."""

TORCH_BACKEND_IMPORTS = {"model", "quant", "kernels"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports, anywhere in it, `from x import y` as `x.y`."""
    package = ["kontext", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=label)
def test_imports_follow_the_table(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[folder] | ANYONE
    if label(path).startswith(TORCH_BACKEND):
        allowed = allowed | TORCH_BACKEND_IMPORTS
    for name in imported(path):
        if not name.startswith("kontext."):
            continue
        inside = name.removeprefix("kontext.")
        assert any(inside == other or inside.startswith(f"{other}.") for other in allowed), (
            f"{label(path)} imports kontext.{inside}; {folder}/ may import {sorted(allowed)}"
        )


@pytest.mark.parametrize("path", sources("runtime"), ids=label)
def test_the_runtime_needs_nothing_heavy(path: Path) -> None:
    if label(path).startswith(TORCH_BACKEND):
        return
    assert not {name.split(".")[0] for name in imported(path)} & HEAVY


@pytest.mark.parametrize(
    "path", [*sources(*FOLDERS), *(ROOT / f"{name}.py" for name in sorted(ANYONE))], ids=label
)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & UNPICKLERS
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        assert call not in {"torch.load", "torch.save", "eval", "exec"}, (
            f"{label(path)}:{node.lineno}: {call}"
        )
        for keyword in node.keywords:
            unpickles = keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            assert not unpickles, f"{label(path)}:{node.lineno} allows pickles"
            shell = keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
            assert not shell, f"{label(path)}:{node.lineno} goes through a shell"


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=label)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{label(path)} has no module docstring"
    assert len(path.read_text().splitlines()) < 400, f"{label(path)} is too long to be read in one go"


def test_packages_are_the_folders_on_disk() -> None:
    on_disk = {"kontext"} | {
        ".".join(["kontext", *path.parent.relative_to(ROOT).parts])
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    assert set(PROJECT["tool"]["mypy"]["packages"]) == {
        package for package in on_disk if package.count(".") == 1
    }


def test_tests_mirror_the_folders() -> None:
    mirrored = {path.parent.relative_to(ROOT / "tests").as_posix() for path in sources("tests")} - {"."}
    assert {path.split("/")[0] for path in mirrored} <= set(FOLDERS)


def test_console_scripts_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
        names = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
        assert function in names, target


def test_every_requirement_of_the_tested_extras_is_pinned() -> None:
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *extras["export"],
        *extras["bench"],
        *extras["rtx"],
        *extras["test"],
    ]
    names = {re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= pins


# -- the documents --

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_commands(document: Path) -> list[list[str]]:
    """The commands of a document's ```sh blocks, one list of words each, continued lines joined."""
    commands = []
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                commands.append(words)
    return commands


SUBCOMMANDS = (["inspect"], ["sensitivity"])
"""Of kontext-export, which have flags of their own."""


@cache
def help_of(module: str, *subcommand: str) -> str:
    words = [sys.executable, "-m", module, *subcommand, "--help"]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_documented_commands_and_flags_exist(document: Path) -> None:
    scripts = PROJECT["project"]["scripts"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in shell_commands(document):
        program = words[0].rsplit("/", 1)[-1]
        if program == "make":
            goals = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(goals) <= targets, words
        elif program in scripts:
            module = scripts[program].partition(":")[0]
            subcommand = words[1:2] if program == "kontext-bench" or words[1:2] in SUBCOMMANDS else []
            text = help_of(module, *subcommand)
            flags = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
            known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
            missing = flags - known
            assert not missing, f"{document.name}: `{' '.join(words)}` uses {sorted(missing)}"
        else:
            known = {"pip", "python", "pytest", "git", "cd", "ruff", "mypy", "curl", "docker", "kubectl"}
            assert program in known, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_documented_extras_exist(document: Path) -> None:
    known = set(PROJECT["project"]["optional-dependencies"])
    for extras in re.findall(r"(?:kontext-export|'\.)\[([a-z,]+)\]", document.read_text(encoding="utf-8")):
        assert set(extras.split(",")) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_no_machine_paths_are_committed() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/(?:work|root|home/\w+)/(?:main|notes|shared|\.)")
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".json"}
            and path.is_file()
            and path != Path(__file__)
        ):
            assert not pattern.search(path.read_text(encoding="utf-8", errors="replace")), name
