"""What the runtime writes under the user's home: its cache and nothing else, and not even that where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontext.runtime.backends.openvino.device import is_installed
from kontext.runtime.cache import cache_folder, is_cached, read_cached, writable_cache

EDIT = """
import sys
from kontext.runtime import Pipeline
Pipeline.load(sys.argv[1], backend=sys.argv[2], device="cpu").edit(None, "x", steps=1, size=(96, 96))
"""

NO_SUCH_USER = """
import pwd
def getpwuid(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = getpwuid
"""
"""As containers are started with."""

BACKENDS = [
    "onnxruntime",
    "torch",
    pytest.param(
        "openvino", marks=pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed")
    ),
]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(fail_to_find_home))


def fail_to_find_home(_cls: type[Path]) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named" / "kontext-export"
    for ignored in ("", "relative/folder"):  # as the specification of base directories says
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / "home" / ".cache" / "kontext-export"


def unwritable(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "file").write_text("")
    yield str(tmp_path / "file")
    yield "/sys"  # read-only for root too
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    if os.geteuid():
        yield str(folder)


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for home in unwritable(tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert writable_cache("openvino") is None
        assert not is_cached(cache_folder() / "openvino" / "x")
        assert read_cached(cache_folder() / "openvino" / "x") == b""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    folder = writable_cache("openvino")
    assert folder == tmp_path / "new" / "kontext-export" / "openvino"
    assert list(folder.iterdir()) == []
    (folder / "x").write_bytes(b"1")
    assert is_cached(folder / "x")
    assert read_cached(folder / "x") == b"1"


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home() -> None:
    assert writable_cache("openvino") is None
    assert not is_cached(cache_folder() / "x")
    assert read_cached(cache_folder() / "x") == b""
    with pytest.raises(OSError, match="Not a directory"):
        cache_folder().mkdir(parents=True)


def edit(bundle: Path, backend: str, variables: dict[str, str], before: str = "") -> None:
    """One edit in a fresh process with no other variables of the user's; fails unless it is silent."""
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TRITON_INTERPRET")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | variables
    done = subprocess.run(
        [sys.executable, "-c", before + EDIT, str(bundle), backend],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_else_is_left_in_a_home(tiny_bundle: Path, tmp_path: Path, backend: str) -> None:
    """ONNX Runtime's and OpenVINO's telemetry would leave an identifier there."""
    edit(tiny_bundle, backend, {"HOME": str(tmp_path)})
    assert [
        path for path in tmp_path.rglob("*") if path.is_file() and "kontext-export" not in path.parts
    ] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_edits_without_a_cache(tiny_bundle: Path, tmp_path: Path, backend: str) -> None:
    for home in unwritable(tmp_path):
        edit(tiny_bundle, backend, {"HOME": home, "XDG_CACHE_HOME": home})


@pytest.mark.parametrize("backend", BACKENDS)
def test_edits_of_a_user_without_a_home(tiny_bundle: Path, backend: str) -> None:
    edit(tiny_bundle, backend, {}, before=NO_SUCH_USER)
