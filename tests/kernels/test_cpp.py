"""The C++ example that launches a compiled kernel, as far as it runs without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import kontext.kernels

EXAMPLE = Path(kontext.kernels.__file__).parent / "cpp" / "launch.cpp"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_example_compiles_and_checks_its_arguments(tmp_path: Path) -> None:
    program = tmp_path / "launch"
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        str(EXAMPLE),
        "-ldl",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "usage")
    done = subprocess.run([program, EXAMPLE, "x", "0", "4", "2", "63", "128"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: ROWS must be a multiple of 64 and COLUMNS of 32\n")
