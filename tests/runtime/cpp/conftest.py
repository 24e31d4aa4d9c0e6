"""The embedded model's bundles and the C++ programs, made once for a whole test run and all its workers.

KONTEXT_CPP_TEST_FOLDER names a folder that keeps them between runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "runtime" / "cpp"
SDK = ROOT / "build" / "onnxruntime-sdk"
"""Made by `make sdk`."""

Untraced = Callable[[Path], AbstractContextManager[None]]

FLAGS = {"fp32": ["--fp32"], "fp8": ["--fp8", "--weight-only"], "int4": ["--int4"]}
"""Weights alone: where inputs are rounded too, the last bit of a sum decides between neighbours a sixteenth apart, and
two builds of ONNX Runtime's kernels part."""


@dataclass(frozen=True)
class CppBuild:
    """An installed build: its prefix, the program, the tests' probe, the library."""

    prefix: Path
    edit: Path
    probe: Path
    library: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Runs kontext-edit-cpp."""
        return subprocess.run(
            list(map(str, (self.edit, *words))), capture_output=True, text=True, timeout=300
        )

    def refuse(self, *words: object) -> str:
        """The one line with which kontext-edit-cpp refuses to run."""
        done = self.run(*words)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def ask(self, *words: object, given: bytes = b"") -> bytes:
        """What the probe answers."""
        done = subprocess.run([self.probe, *map(str, words)], input=given, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture(scope="session")
def kept_folder(shared_folder: Path) -> Path:
    folder = Path(os.environ.get("KONTEXT_CPP_TEST_FOLDER") or shared_folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by the first process that needs it; what failed half-way is made anew."""
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_name(folder.name + ".done")
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def embedded_bundle(kept_folder: Path, untraced: Untraced) -> Callable[[str], Path]:
    """The embedded model's bundle in a precision: fp32, fp8, int4. Only fp32 is traced; the rest takes its graphs."""
    pytest.importorskip("torch")
    from kontext.export.cli.main import main

    def export(precision: str, folder: Path) -> None:
        with contextlib.nullcontext() if precision == "fp32" else untraced(bundle("fp32")):
            assert main([*FLAGS[precision], "-o", str(folder), "--quiet", "--force"]) == 0

    def bundle(precision: str) -> Path:
        return once(kept_folder / f"embedded-{precision}", lambda folder: export(precision, folder))

    return bundle


@pytest.fixture
def linked_bundle(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, untraced: Untraced) -> Path:
    """`tiny_bundle` over the checkpoint's own files."""
    from kontext.export.cli.main import main

    folder = tmp_path / "linked"
    with untraced(tiny_bundle):
        assert main([str(tiny_checkpoint), "-o", str(folder), "--fp32", "--link-weights", "--quiet"]) == 0
    return folder


def cmake(*words: object) -> None:
    done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, (
        f"cmake {' '.join(map(str, words))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )


def openvino_cmake() -> Path | None:
    """The CMake files in OpenVINO's wheel, if it is installed."""
    found = importlib.util.find_spec("openvino")
    folder = Path(found.origin).parent / "cmake" if found is not None and found.origin else None
    return folder if folder is not None and folder.is_dir() else None


def build(folder: Path, *options: str) -> None:
    """Configures, builds and installs into `folder`. One translation unit for many files: half the time."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = (
        f"-DONNXRUNTIME_ROOT={SDK}",
        f"-DCMAKE_INSTALL_PREFIX={folder}",
        "-DCMAKE_UNITY_BUILD=ON",
        *([f"-DOpenVINO_DIR={openvino_cmake()}"] if openvino_cmake() else ["-DKONTEXT_OPENVINO=OFF"]),
        *options,
    )
    cmake("-S", SOURCES, "-B", folder / "build", *generator, *options)
    cmake("--build", folder / "build")
    cmake("--install", folder / "build")


def need_tools() -> None:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"the C++ runtime needs {tool}")
    if sys.platform != "linux":
        pytest.skip("the C++ runtime is built on Linux")
    headers = "#include <cstdio>\n#include <png.h>\n#include <jpeglib.h>\n"
    found = subprocess.run(
        ["c++", "-fsyntax-only", "-x", "c++", "-"], input=headers, text=True, capture_output=True
    )
    if found.returncode != 0:
        pytest.skip(
            "the C++ runtime needs libpng's and libjpeg's headers: apt-get install libpng-dev libjpeg-dev"
        )
    if not (SDK / "lib").exists():
        pytest.skip("ONNX Runtime's headers are not there: `make sdk` could not fetch them")


def built(folder: Path) -> CppBuild:
    return CppBuild(
        prefix=folder,
        edit=folder / "bin" / "kontext-edit-cpp",
        probe=folder / "build" / "kontext-probe",
        library=next(iter(folder.glob("lib*/**/libkontext.*")), folder),
    )


@pytest.fixture(scope="session")
def cpp(kept_folder: Path) -> CppBuild:
    """Optimized, with a shared library."""
    need_tools()
    options = ("-DBUILD_SHARED_LIBS=ON", "-DKONTEXT_BUILD_PROBE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O2")
    return built(once(kept_folder / "cpp-release", lambda folder: build(folder, *options)))


@pytest.fixture(scope="session")
def sanitized(kept_folder: Path) -> CppBuild:
    """With AddressSanitizer and UndefinedBehaviorSanitizer, a static library, our own SHA-256."""
    need_tools()
    options = (
        "-DKONTEXT_SANITIZE=address,undefined",
        "-DKONTEXT_BUILD_PROBE=ON",
        "-DKONTEXT_OPENSSL=OFF",
        "-DKONTEXT_OPENVINO=OFF",  # it loads libraries in a way (RTLD_DEEPBIND) that AddressSanitizer refuses
        "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -g1 -D_GLIBCXX_ASSERTIONS",
    )
    return built(once(kept_folder / "cpp-sanitized", lambda folder: build(folder, *options)))


@pytest.fixture
def c_api(cpp: CppBuild) -> ctypes.CDLL:
    library = ctypes.CDLL(str(cpp.library))
    library.kontext_error.restype = ctypes.c_char_p
    return library
