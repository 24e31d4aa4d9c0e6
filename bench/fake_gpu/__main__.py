"""`python -m kontext.bench.fake_gpu --memory 12GB --architecture sm_89 -- COMMAND`: runs COMMAND on a GPU that computes
nothing.

Needs PyTorch's build for CUDA, Triton and a C compiler in this environment, and Linux on x86-64.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import KontextError
from ...kernels.compile import SHARED_LIMITS, parse_architectures
from ...runtime.cache import cache_folder
from ...runtime.units import parse_bytes
from ..command_line import exit_code

HERE = Path(__file__).resolve().parent
LIBRARIES = {"runtime": "libfake_gpu_runtime.so", "blas": "libfake_gpu_blas.so", "driver": "libcuda.so.1"}
FLAGS = ("-shared", "-fPIC", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")


def headers() -> list[Path]:
    """Folders of CUDA 13's headers: those that PyTorch's build brings, and Triton's, which has what these include.

    Raises:
        KontextError: there are none, or they are another version's, whose structures are laid out otherwise.
    """
    triton = importlib.util.find_spec("triton")
    folders = [Path(place) / "nvidia" / "cu13" / "include" for place in sys.path]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "include")
    there = [folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()]
    if there:
        first = (there[0] / "cuda_runtime_api.h").read_bytes()
        if re.search(rb"#define CUDART_VERSION\s+13\d\d\d\b", first):
            return there
    raise KontextError("a fake GPU is built with CUDA 13's headers: pip install nvidia-cuda-runtime triton")


def build(folder: Path) -> None:
    """Compiles the three libraries into `folder`, each when its source is newer.

    Raises:
        KontextError: there is no compiler, or it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise KontextError("a fake GPU needs a C compiler: install one, or name it in CC")
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in HERE.glob("*.[ch]"))
    stale = {
        source: target
        for source, library in LIBRARIES.items()
        if not (target := folder / library).exists() or target.stat().st_mtime <= newest
    }
    includes = [f"-I{each}" for each in headers()] if stale else []
    for source, target in stale.items():
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        command = [
            compiler,
            *FLAGS,
            *includes,
            f"-Wl,-soname,{target.name}",
            str(HERE / f"{source}.c"),
            *("-o", str(unfinished), "-ldl", "-lpthread"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise KontextError(f"{compiler} cannot compile {source}.c: {done.stderr.strip().splitlines()[0]}")
        unfinished.replace(target)


def environment(
    folder: Path, memory: int, architecture: int, trace: bool = False, pinned: bool = True
) -> dict[str, str]:
    """This process's environment with the fake GPU of `memory` bytes in it."""

    def before(name: str, *paths: str) -> str:
        return os.pathsep.join([*paths, *filter(None, [os.environ.get(name)])])

    libraries = [str(folder / LIBRARIES[name]) for name in ("runtime", "blas")]
    return {
        **os.environ,
        "LD_PRELOAD": before("LD_PRELOAD", *libraries),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", str(folder)),
        "PYTHONPATH": before("PYTHONPATH", str(HERE / "site")),
        "TRITON_LIBCUDA_PATH": str(folder),
        # Triton links what it builds against this driver, and its cache must not be a real GPU's.
        "TRITON_CACHE_DIR": str(folder / "triton"),
        # The compiler's worker processes do not always end under a preloaded library.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "FAKE_GPU_MEMORY": str(memory),
        "FAKE_GPU_ARCHITECTURE": str(architecture),
        "FAKE_GPU_SHARED": str(SHARED_LIMITS[architecture] * 1024),
        "FAKE_GPU_TRACE": "1" if trace else "0",
        "FAKE_GPU_PINNED": "1" if pinned else "0",
    }


def check_torch(variables: Mapping[str, str]) -> None:
    """Raises KontextError where PyTorch does not see the GPU."""
    test = "import torch; print(torch.cuda.is_available(), torch.version.cuda)"
    done = subprocess.run([sys.executable, "-c", test], env=variables, capture_output=True, text=True)
    if done.stdout.split()[:1] != ["True"]:
        answer = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
        raise KontextError(
            f"PyTorch does not see the fake GPU ({' '.join(answer)}): it must be a build for CUDA 13"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code of COMMAND."""
    parser = argparse.ArgumentParser(
        prog="python -m kontext.bench.fake_gpu", description="Runs COMMAND on a GPU that computes nothing."
    )
    parser.add_argument("--memory", default="80GB", metavar="SIZE", help="of the GPU (default: 80GB)")
    parser.add_argument("--architecture", default="sm_90", metavar="SM", help="of the GPU (default: sm_90)")
    parser.add_argument("--trace", action="store_true", help="list every launch of a Triton kernel on stderr")
    parser.add_argument("--unpinned", action="store_true", help="refuse to register host memory, as WSL may")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --, with its arguments")
    options = parser.parse_args(arguments)

    def run() -> int:
        architecture = parse_architectures(options.architecture)[0]
        folder = cache_folder() / "fake_gpu"
        build(folder)
        variables = environment(
            folder, parse_bytes(options.memory), architecture, options.trace, not options.unpinned
        )
        check_torch(variables)
        return subprocess.run(options.command, env=variables).returncode

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
