"""`python -P -m kontext.kernels.compile`: compiles every kernel for every architecture, without a GPU.

Prints each kernel's registers, spilled bytes, shared memory and tensor-core instructions. It fails if a kernel spills,
lost its tensor-core instructions, or accesses device memory byte by byte. A mask or a clamped index along the channels
is enough to cause byte-wise loads, which cannot be copied to shared memory ahead of time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command import Parser, run_command
from ..compute_capability import parse_capabilities, sm_name
from ..errors import KontextError
from ..installation import install_command
from ..temporary_folder import temporary_folder

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_LIMITS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory per thread block (CUDA C++ programming guide, compute capabilities)."""

BYTEWISE = re.compile(r"\b(?:LDG|STG)\.E(?:\.\w+)*?\.[US]8\b")
FEW_BYTES = 1
"""Byte-wise instructions that are allowed: a row with fewer bytes than the program has threads needs one."""

TENSOR_CORE = re.compile(r"\b((?:UTC)?[HIQO](?:G)?MMA)\b")


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code and what its loader needs."""

    cubin: bytes
    symbol: str
    shared: int
    """Bytes of dynamic shared memory."""
    warps: int
    parameters: int
    """Of the machine code: the arguments, then pointers to scratch memory (null if it needs none)."""
    scratch: int
    """Bytes of global scratch memory per program."""


@dataclass(frozen=True)
class Resources:
    """What a kernel's machine code uses, by cuobjdump."""

    registers: int
    spilled: int
    """Bytes per thread."""
    shared: int
    """Bytes per program."""
    instructions: dict[str, int]
    """Tensor-core instructions and how often each occurs."""
    bytewise: int = 0
    """Instructions that load or store single bytes of device memory."""


def compile_launch(launch: Any, arch: int) -> Compiled:
    """Machine code of a `Launch` for compute capability `arch`.

    Raises:
        KontextError: Triton is not installed or cannot compile the kernel.
    """
    from .launch import triton

    if triton is None:
        raise KontextError(f"compiling kernels needs Triton: {install_command('kernels')}")
    if not hasattr(triton.compiler, "ASTSource") or type(launch.kernel).__name__ != "JITFunction":
        raise KontextError("kernels cannot be compiled while TRITON_INTERPRET is set")
    from triton.backends.compiler import GPUTarget

    names = launch.kernel.arg_names
    types = launch.signature()
    signature = {name: types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    constants |= {(names.index(name),): None for name, value in launch.arguments.items() if value is None}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned()}
    source = triton.compiler.ASTSource(launch.kernel, signature, constants, attributes)
    try:
        kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    except Exception as error:  # the compiler's exceptions have no common base
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise KontextError(f"{launch.name} cannot be compiled for {sm_name(arch)}: {lines[-1]}") from error
    entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)", kernel.asm["ptx"], re.DOTALL)
    return Compiled(
        cubin=kernel.asm["cubin"],
        symbol=kernel.metadata.name,
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        parameters=entry.group(1).count(".param") if entry else len(types),
        scratch=getattr(kernel.metadata, "global_scratch_size", 0) or 0,
    )


def tool(name: str) -> str:
    """Path of one of NVIDIA's programs that come with Triton."""
    from .launch import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise KontextError(f"this installation of Triton lacks {name}")
    return str(path)


def inspect(compiled: Compiled) -> Resources:
    """Disassembles machine code."""
    with temporary_folder("cubin") as folder:
        file = folder / "kernel.cubin"
        file.write_bytes(compiled.cubin)
        output = subprocess.run(
            [tool("cuobjdump"), "-res-usage", "-sass", str(file)], capture_output=True, text=True, check=True
        ).stdout
    usage = re.search(r"REG:(\d+)\s+STACK:(\d+)", output)
    if usage is None:
        raise KontextError("cuobjdump printed no resource usage (REG:… STACK:…)")
    found = Counter(match.group(1) for match in TENSOR_CORE.finditer(output))
    local = len(re.findall(r"\b(?:LDL|STL)\b", output))
    spilled = int(usage.group(2)) if local else 0
    bytewise = len(BYTEWISE.findall(output))
    return Resources(int(usage.group(1)), spilled, compiled.shared, dict(found), bytewise)


def faults(resources: Resources, patterns: Sequence[re.Pattern[str]], arch: int) -> list[str]:
    """What is wrong with a kernel; each of `patterns` must match one of its instructions."""
    found = []
    if resources.spilled:
        found.append(f"spills {resources.spilled} bytes a thread")
    if resources.shared > SHARED_LIMITS[arch] * 1024:
        found.append(
            f"needs {resources.shared / 1024:.0f} KiB of shared memory, {sm_name(arch)} has {SHARED_LIMITS[arch]}"
        )
    if resources.bytewise > FEW_BYTES:
        found.append(f"accesses device memory byte by byte ({resources.bytewise} instructions)")
    for pattern in patterns:
        if not any(pattern.search(name) for name in resources.instructions):
            found.append(f"has no {pattern.pattern.strip(chr(92) + 'b')}")
    return found


def compile_variants(arch: int, only: str | None = None) -> Iterator[tuple[str, Resources, list[str]]]:
    """Compiles the variants of one architecture whose name matches `only`; yields name, resources and faults."""
    from .variants import Sizes, attention_variants, variants

    seen = set()
    everything = [*variants(arch), *attention_variants(arch, Sizes(), head_dims=(32, 64))]
    for variant in everything:
        key = variant.launch.key()
        if key in seen or (only is not None and not re.search(only, variant.name)):
            continue
        seen.add(key)
        resources = inspect(compile_launch(variant.launch, arch))
        yield variant.name, resources, faults(resources, variant.instructions(arch), arch)


def parse_architectures(text: str) -> tuple[int, ...]:
    """sm_89,sm_120 as (89, 120).

    Raises:
        KontextError: no architecture, or one that there are no kernels for.
    """
    chosen = parse_capabilities(text)
    for arch in chosen:
        if arch not in ARCHITECTURES:
            known = ", ".join(map(sm_name, ARCHITECTURES))
            raise KontextError(f"there are kernels for {known}, not for {sm_name(arch)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if a kernel fails a check, 2 for an error that the user can fix."""
    return run_command(lambda: run(arguments))


def run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -P -m kontext.kernels.compile", description=__doc__)
    every = ",".join(map(sm_name, ARCHITECTURES))
    parser.add_argument("--arch", default=every, help=f"architectures (default: {every})")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        help="only kernels whose name matches this regular expression, such as 'attention fp8'",
    )
    options = parser.parse_args(arguments)
    architectures = parse_architectures(options.arch)
    failed = 0
    with temporary_folder("triton") as cache:  # an empty cache, so that everything is compiled now
        os.environ["TRITON_CACHE_DIR"] = str(cache)
        print(f"{'':8}{'kernel':36}{'registers':>10}{'spilled':>9}{'shared':>9}  tensor cores")
        for arch in architectures:
            for name, resources, found in compile_variants(arch, options.only):
                print(table_row(arch, name, resources, found), flush=True)
                failed += bool(found)
    if failed:
        print(f"{failed} kernels failed a check", file=sys.stderr)
    return 1 if failed else 0


def table_row(arch: int, name: str, resources: Resources, found: Sequence[str]) -> str:
    cores = ", ".join(f"{count} {kind}" for kind, count in sorted(resources.instructions.items()))
    numbers = f"{resources.registers:>10}{resources.spilled:>9}{resources.shared:>9}"
    row = f"{sm_name(arch):8}{name:36}{numbers}  {cores}".rstrip()
    return row + (f"  FAULT: {'; '.join(found)}" if found else "")


if __name__ == "__main__":
    sys.exit(main())
