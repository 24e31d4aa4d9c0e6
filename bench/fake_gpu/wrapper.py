"""Runs a command on a fake GPU of any memory and architecture: stub CUDA libraries whose kernels are no-ops.

Needs PyTorch's build for CUDA 13, Triton and a C compiler, on Linux x86-64. Real are PyTorch's dispatch and caching
allocator, streams, graph capture, Triton's compiler and launches; numbers read from the device are zeros.

With `--library onnxruntime`, it needs onnxruntime-gpu, nvidia-cuda-runtime (headers), Triton (headers) and binutils
instead. Real are ONNX Runtime's CUDA provider, its list of kernels, the placement of nodes and its memory arena.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ...child_process import code_command
from ...compute_capability import parse_capabilities
from ...errors import KontextError
from ...kernels.compile import SHARED_LIMITS, parse_architectures
from ...runtime.cache import cache_folder
from ...runtime.units import parse_bytes
from .libraries import HERE, LIBRARIES, build_libraries
from .onnxruntime_libraries import PRELOADED, build_onnxruntime_libraries

TURING_SHARED = 64
"""KiB of shared memory that a program may have where `SHARED_LIMITS` does not say it."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory",
        type=partial(parse_bytes, flag="--memory"),
        default="80GB",
        metavar="SIZE",
        help="of the GPU (80GB)",
    )
    parser.add_argument("--architecture", default="sm_90", metavar="SM", help="of the GPU (sm_90)")
    parser.add_argument(
        "--library",
        choices=("torch", "onnxruntime"),
        default="torch",
        help="what the command runs on the GPU (torch)",
    )
    parser.add_argument("--trace", action="store_true", help="list every launch of a Triton kernel on stderr")
    parser.add_argument(
        "--refuse-page-locking",
        action="store_true",
        help="fail to register host memory, as CUDA may under WSL",
    )
    parser.add_argument("words", nargs="+", metavar="COMMAND", help="after --, with its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit code of the command."""
    folder = cache_folder() / "fake_gpu"
    if arguments.library == "onnxruntime":  # which runs none of our kernels: any architecture
        (architecture,) = parse_capabilities(arguments.architecture)[:1]
        folder = folder / "onnxruntime"
        build_onnxruntime_libraries(folder)
        variables = onnxruntime_environment(folder, arguments.memory, architecture)
        return run_command(arguments.words, variables)
    architecture = parse_architectures(arguments.architecture)[0]
    build_libraries(folder)
    variables = environment(
        folder,
        arguments.memory,
        architecture,
        arguments.trace,
        page_locking=not arguments.refuse_page_locking,
    )
    check_torch(variables)
    return run_command(arguments.words, variables)


def run_command(words: Sequence[str], variables: Mapping[str, str]) -> int:
    """The exit code of a command. Raises KontextError if there is no such command."""
    try:
        return subprocess.run(words, env=variables).returncode
    except OSError as error:
        raise KontextError(f"cannot run {words[0]}: {error.strerror}") from None


def environment(
    folder: Path, memory: int, architecture: int, trace: bool = False, *, page_locking: bool = True
) -> dict[str, str]:
    """This process's environment with a fake GPU of `memory` bytes; `folder` has the libraries."""

    libraries = [str(folder / LIBRARIES[name]) for name in ("runtime", "blas")]
    return {
        **os.environ,
        "LD_PRELOAD": before("LD_PRELOAD", *libraries),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", str(folder)),
        "PYTHONPATH": before("PYTHONPATH", str(HERE / "site")),
        "TRITON_LIBCUDA_PATH": str(folder),
        # Triton links what it compiles against this driver, so its cache must not be a real GPU's.
        "TRITON_CACHE_DIR": str(folder / "triton"),
        # torch.compile's worker processes do not always end under a preloaded library.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        **properties(memory, architecture),
        "FAKE_GPU_TRACE": "1" if trace else "0",
        "FAKE_GPU_PAGE_LOCKING": "1" if page_locking else "0",
    }


def onnxruntime_environment(folder: Path, memory: int, architecture: int) -> dict[str, str]:
    """As `environment`, for ONNX Runtime. The libraries are loaded first, because ONNX Runtime loads those of pip's
    packages by path."""
    return {
        **os.environ,
        "LD_PRELOAD": before("LD_PRELOAD", *(str(folder / name) for name in PRELOADED)),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", str(folder)),
        **properties(memory, architecture),
    }


def properties(memory: int, architecture: int) -> dict[str, str]:
    """The variables that the stub libraries read the GPU's properties from (`fake_gpu.h`)."""
    return {
        "FAKE_GPU_MEMORY": str(memory),
        "FAKE_GPU_ARCHITECTURE": str(architecture),
        "FAKE_GPU_SHARED": str(SHARED_LIMITS.get(architecture, TURING_SHARED) * 1024),
    }


def before(name: str, *paths: str) -> str:
    """An environment variable of paths with more in front."""
    return os.pathsep.join([*paths, *filter(None, [os.environ.get(name)])])


def check_torch(variables: Mapping[str, str]) -> None:
    """Raises KontextError if PyTorch does not see the fake GPU."""
    test = "import torch; print(torch.cuda.is_available(), torch.version.cuda)"
    done = subprocess.run(code_command(test), env=variables, capture_output=True, text=True)
    if done.stdout.split()[:1] != ["True"]:
        answer = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
        raise KontextError(
            f"PyTorch does not see the fake GPU ({' '.join(answer)}): it must be a build for CUDA 13"
        )
