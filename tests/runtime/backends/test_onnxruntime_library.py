"""Installations of ONNX Runtime that are missing, double or damaged: one line says what to type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import pytest

from kontext.errors import KontextError
from kontext.installation import install_command
from kontext.runtime.backends import onnxruntime_library
from kontext.runtime.backends.onnxruntime_library import (
    CUDA,
    check_provider,
    load_onnxruntime,
    warn_of_hidden_gpu,
    wheels,
)


def install(site: Path, *names: str, module: str = "InferenceSession = None\n") -> None:
    """Fake wheels in `site`, all of the same module."""
    (site / "onnxruntime").mkdir(parents=True, exist_ok=True)
    (site / "onnxruntime" / "__init__.py").write_text(module)
    for name in names:
        info = site / f"{name.replace('-', '_')}-1.31.1.dist-info"
        info.mkdir()
        (info / "RECORD").write_text("onnxruntime/__init__.py,sha256=x,25\n")


def answer(site: Path, code: str = "load_onnxruntime()") -> str:
    """What a fresh Python says that finds ONNX Runtime in `site` alone, or nowhere."""
    program = f"""
import sys
from kontext.errors import KontextError
from kontext.runtime.backends.onnxruntime_library import *
if importlib.util.find_spec("onnxruntime") and not {site.exists()}:
    sys.path = [place for place in sys.path if not __import__("os").path.isdir(place + "/onnxruntime")]
try:
    {code}
except KontextError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's wheels for CPUs and for GPUs, both installed."""
    monkeypatch.setattr(onnxruntime_library, "wheels", lambda: ["onnxruntime", "onnxruntime-gpu"])
    warn_of_hidden_gpu.cache_clear()


def test_as_it_is_installed_here() -> None:
    assert load_onnxruntime() is onnxruntime
    assert [name for name in wheels() if name.startswith("onnxruntime")] == wheels() != []


def test_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(KontextError, match=r"^ONNX Runtime is not installed: ") as error:
        load_onnxruntime()
    assert install_command("cpu") in str(error.value)
    assert install_command("gpu") in str(error.value)


@pytest.mark.parametrize(("left", "extra"), [((), "cpu"), (("onnxruntime-gpu",), "gpu")])
def test_half_removed(tmp_path: Path, left: Sequence[str], extra: str) -> None:
    """`pip uninstall onnxruntime` removes files of onnxruntime-gpu too; a folder without files can be imported."""
    site = tmp_path / "site"
    install(site, *left, module="")
    remove = f"pip uninstall -y {' '.join(left)} && " if left else ""
    start = "ONNX Runtime is installed but cannot be loaded"
    assert answer(site) == f"{start} (files are missing): {remove}{install_command(extra)}"
    install(site, module="from .capi import nothing\n")
    assert answer(site).startswith(f"{start} (No module named 'onnxruntime.capi'): ")
    install(site, module="raise ImportError('libx.so: cannot open\\nmore')\n")
    assert answer(site).startswith(f"{start} (libx.so: cannot open): ")


def test_wheels_that_share_the_module(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "onnxruntime-gpu")
    extensions = tmp_path / "onnxruntime_extensions-0.14.0.dist-info"
    extensions.mkdir()
    (extensions / "RECORD").write_text("onnxruntime_extensions/__init__.py,sha256=x,25\n")
    assert answer(tmp_path, "print(*wheels())") == "onnxruntime onnxruntime-gpu"


@pytest.mark.usefixtures("hidden")
def test_the_cpu_wheel_over_the_gpu_wheel() -> None:
    remedy = f"pip uninstall -y onnxruntime onnxruntime-gpu && {install_command('gpu')}"
    with pytest.warns(UserWarning, match="are both installed") as told:
        warn_of_hidden_gpu()
    assert str(told[0].message).endswith(remedy)
    warn_of_hidden_gpu()  # once is enough
    with pytest.raises(KontextError, match="onnxruntime and onnxruntime-gpu does not have") as error:
        check_provider("cuda", CUDA, ["CPUExecutionProvider"])
    assert remedy in str(error.value)
    check_provider("cuda", CUDA, [CUDA, "CPUExecutionProvider"])


def test_one_wheel_hides_nothing(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    for names in (["onnxruntime"], ["onnxruntime-gpu"], []):
        monkeypatch.setattr(onnxruntime_library, "wheels", lambda names=names: names)
        warn_of_hidden_gpu.cache_clear()
        warn_of_hidden_gpu()
    assert not recwarn.list
