"""Compiles the stub libraries that ONNX Runtime's CUDA provider loads: CUDA's runtime, cuBLAS, cuBLASLt, cuRAND, cuDNN.

The provider links them by name and version, and opens cuDNN, so they take the real ones' names. Functions that neither
`runtime.c` nor `onnxruntime.c` defines do nothing and succeed; which these are is read from the provider itself.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from ...errors import KontextError
from .libraries import HERE, LIBRARIES, compiler, first_error, header_folders

FLAGS = ("-fPIC", "-O1", "-std=gnu11", "-w")
"""Generated functions do not have the headers' parameters: no warnings."""

RUNTIME = "libcudart.so.13"
MATH = {"libcublas.so.13": "cublas[A-KM-Z]", "libcublasLt.so.13": "cublasLt", "libcurand.so.10": "curand"}
"""Library → what the names of its functions begin with."""

CUDNN = "libcudnn.so.9"

PRELOADED = (RUNTIME, *MATH, CUDNN)


def cuda_provider() -> Path | None:
    """The library of ONNX Runtime's CUDA provider, if the installed ONNX Runtime has one."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.is_file() else None


def build_onnxruntime_libraries(folder: Path) -> None:
    """Compiles the libraries into `folder`; keeps those that are newer than the sources and the provider.

    Raises:
        KontextError: onnxruntime-gpu is not installed, or the compiler or nm (binutils) is not there or fails.
    """
    provider = cuda_provider()
    if provider is None:
        raise KontextError(
            "onnxruntime-gpu is not installed: it brings the CUDA provider that the stubs are for"
        )
    sources = [provider, *HERE.glob("*.[ch]"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in sources)
    names = [*PRELOADED, LIBRARIES["driver"]]  # the driver last: it says that all are there
    if all((folder / name).exists() and (folder / name).stat().st_mtime > newest for name in names):
        return
    folder.mkdir(parents=True, exist_ok=True)
    needed = undefined_functions(provider)
    includes = [f"-I{each}" for each in header_folders()]
    for name, prefix in MATH.items():
        functions = [each for each in needed if re.match(prefix, each)]
        link(folder, name, [generate(folder, name, functions)])
    link(folder, CUDNN, [generate(folder, CUDNN, opened_functions(provider, "cudnn"))], versioned=False)
    objects = []
    for source in ("runtime", "onnxruntime"):
        objects.append(folder / f"{source}.o")
        run([compiler(), "-c", *FLAGS, *includes, str(HERE / f"{source}.c"), "-o", str(objects[-1])])
    known = {name for each in objects for name in defined_functions(each)}
    rest = [each for each in needed if re.match("cuda|__cuda", each) and each not in known]
    link(folder, RUNTIME, [*objects, generate(folder, RUNTIME, rest)])
    link(folder, LIBRARIES["driver"], [HERE / "driver.c"], includes, versioned=False)


def generate(folder: Path, library: str, functions: list[str]) -> Path:
    """A C file of functions that succeed. Those that create something give distinct handles."""
    lines = ["static long handle = 0x2000;"]
    for name in functions:
        if name.endswith(("Create", "Create_v2")):
            lines.append(f"int {name}(void** made) {{ if (made) *made = (void*)(handle += 16); return 0; }}")
        else:
            lines.append(f"int {name}(void) {{ return 0; }}")
    path = folder / f"{library}.c"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def link(
    folder: Path,
    library: str,
    parts: list[Path],
    includes: list[str] | None = None,
    *,
    versioned: bool = True,
) -> None:
    """Links a library. The CUDA libraries' symbols have the library's name as their version."""
    words = [compiler(), "-shared", *FLAGS, *(includes or []), *map(str, parts), f"-Wl,-soname,{library}"]
    if versioned:
        script = folder / f"{library}.map"
        script.write_text(f"{library} {{ global: *; }};\n", encoding="utf-8")
        words.append(f"-Wl,--version-script={script}")
    unfinished = folder / f"{library}.unfinished"
    run([*words, "-o", str(unfinished), "-ldl", "-lpthread"])
    unfinished.replace(folder / library)


def undefined_functions(library: Path) -> list[str]:
    """What a library takes from others, without versions."""
    return sorted({name.split("@")[0] for name in symbols(library, "-D", "--undefined-only")})


def opened_functions(library: Path, prefix: str) -> list[str]:
    """Names in a library that a function of a library which it opens may have."""
    names = re.findall(prefix.encode() + rb"[A-Z][A-Za-z0-9_]+(?=\0)", library.read_bytes())
    return sorted({name.decode() for name in names})


def defined_functions(path: Path) -> list[str]:
    return symbols(path, "-g", "--defined-only")


def symbols(path: Path, *flags: str) -> list[str]:
    if shutil.which("nm") is None:
        raise KontextError("stub libraries for ONNX Runtime need nm: install binutils")
    return [line.split()[-1] for line in run(["nm", *flags, str(path)]).splitlines() if line.strip()]


def run(words: list[str]) -> str:
    """The output of a command. Raises KontextError if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise KontextError(f"{Path(words[0]).name} fails on {words[-1]}: {first_error(done.stderr)}")
    return done.stdout
