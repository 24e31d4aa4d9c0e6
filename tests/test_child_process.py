"""No program of this package runs Python code that lies in the current directory."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from kontext.child_process import code_command, module_command, protect_libraries

ROOT = Path(__file__).resolve().parents[1]
MODULES = [
    path
    for pattern in ("*.py", "[a-z]*/**/*.py")
    for path in sorted(ROOT.glob(pattern))
    if path.relative_to(ROOT).parts[0] not in ("build", "tests") and path.name != "child_process.py"
]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory has a module of every name that could be imported; the test fails if one was run."""
    folder, mark = tmp_path / "downloaded", tmp_path / "run"
    folder.mkdir()
    for name in sys.stdlib_module_names | packages_distributions().keys():
        if name.isidentifier():
            (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\n")
    (folder / "kontext").mkdir()
    (folder / "kontext" / "__init__.py").write_text(f"open({str(mark)!r}, 'a').write('kontext ')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield mark
    assert not mark.exists(), mark.read_text()


def output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_trap_works(trap: Path) -> None:
    """Python's own `-c` runs what lies there."""
    subprocess.run([sys.executable, "-c", "import json"], check=True)
    assert trap.read_text().split()[:1] == ["json"]
    trap.unlink()


def test_modules_and_code(trap: Path) -> None:
    assert output(module_command("calendar", "2026", "11")).split()[0] == "November"
    assert output(code_command("import json, sys; print(json.dumps(sys.argv))", "a b")) == '["-c", "a b"]\n'
    assert "usage: kontext-export" in output(module_command("kontext.export.cli", "--help"))


def test_a_safe_path_loses_nothing(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PYTHONSAFEPATH there is no '' to take away."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert output(code_command("import json; print(json.__file__)")) != ""
    first = output(code_command("print(sys.path)"))
    monkeypatch.delenv("PYTHONSAFEPATH")
    assert output(code_command("print(sys.path)")) == first


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no safe path")
def test_programs_that_libraries_start(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.delenv("PYTHONSAFEPATH")
    protect_libraries()
    assert output([sys.executable, "-c", "import json; print(json.loads('1'))"]) == "1\n"


def test_a_process_ends_with_the_one_that_started_it() -> None:
    """The one that started it is killed, and can no longer end it."""
    child = code_command(
        "import time; from kontext.child_process import end_with_parent; end_with_parent(); "
        "print('running', flush=True); time.sleep(600)"
    )
    parent = code_command(f"import subprocess, time; subprocess.Popen({child}); time.sleep(600)")
    with subprocess.Popen(parent, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "running\n"
        started.kill()
        assert started.stdout.read() == ""  # when its last writer has gone


def test_tracing(trap: Path, tiny_checkpoint: Path) -> None:
    pytest.importorskip("torch")
    from kontext.export.graph.workers import Tracers
    from kontext.model.checkpoint import Checkpoint

    config = Checkpoint.open(tiny_checkpoint).config
    with Tracers(["modulation"], config, {"modulation": "fp32"}) as tracers:
        assert tracers.processes
        assert len(tracers.result("modulation").graph) > 0


def test_compiling_engines(trap: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from kontext.errors import KontextError
    from kontext.export.engines.process import BuilderProcess

    graph = tmp_path / "vae_encoder.onnx"
    graph.write_bytes(b"no graph")
    job = {"graph": str(graph), "target": "sm89", "profile": {}, "output": str(tmp_path / "engine")}
    with BuilderProcess("rtx") as builder, pytest.raises(KontextError, match="vae_encoder"):
        builder.build(job, lambda *_: None)


def test_every_python_program_is_started_so() -> None:
    """No other list has this interpreter, another Python or `-m` in it, unless `-I` isolates the program."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple):
                words = [ast.unparse(each) for each in node.elts]
                python = any("sys.executable" in word or "bin/python" in word for word in words)
                assert (not python and "'-m'" not in words) or "'-I'" in words, f"{path}:{node.lineno}"
