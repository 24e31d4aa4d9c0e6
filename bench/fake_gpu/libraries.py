"""Compiles the stub CUDA libraries: runtime (preloaded), driver and cuBLAS."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ...errors import KontextError

HERE = Path(__file__).resolve().parent
LIBRARIES = {"runtime": "libfake_gpu_runtime.so", "blas": "libfake_gpu_blas.so", "driver": "libcuda.so.1"}
"""C source, without its ending → library."""

FLAGS = ("-shared", "-fPIC", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")


def header_folders() -> list[Path]:
    """Folders with CUDA 13's headers: those of PyTorch's CUDA wheels and of Triton.

    Raises:
        KontextError: there are none, or they are of another version, whose structures differ.
    """
    triton = importlib.util.find_spec("triton")
    folders = [Path(place) / "nvidia" / "cu13" / "include" for place in sys.path]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "include")
    existing = [folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()]
    if any((folder / "crt" / "host_defines.h").is_file() for folder in existing):
        first = (existing[0] / "cuda_runtime_api.h").read_bytes()
        if re.search(rb"#define CUDART_VERSION\s+13\d\d\d\b", first):
            return existing
    raise KontextError("a fake GPU is built with CUDA 13's headers: pip install nvidia-cuda-runtime triton")


def first_error(text: str) -> str:
    """The first line of a compiler's messages that has an error, or the first of all."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error:" in line), lines[0])


def compiler() -> str:
    """The C compiler. Raises KontextError if there is none."""
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not found:
        raise KontextError("a fake GPU needs a C compiler: install one, or name it in CC")
    return found


def build_libraries(folder: Path) -> None:
    """Compiles the libraries into `folder`; keeps those that are newer than the sources.

    Raises:
        KontextError: there is no compiler, or it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in HERE.glob("*.[ch]"))
    stale = {
        source: target
        for source, library in LIBRARIES.items()
        if not (target := folder / library).exists() or target.stat().st_mtime <= newest
    }
    includes = [f"-I{each}" for each in header_folders()] if stale else []
    for source, target in stale.items():
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        command = [
            compiler(),
            *FLAGS,
            *includes,
            f"-Wl,-soname,{target.name}",
            str(HERE / f"{source}.c"),
            *("-o", str(unfinished), "-ldl", "-lpthread"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise KontextError(f"{compiler()} cannot compile {source}.c: {first_error(done.stderr)}")
        unfinished.replace(target)
