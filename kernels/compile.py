"""`python -m kontext.kernels.compile`: every kernel for every architecture, with no GPU.

Prints registers, shared memory, spilled bytes and the tensor-core instructions in the machine code, and fails where a
kernel spills, has lost its tensor-core path, or goes over device memory byte by byte (which a mask or a clamped index
along the channels is enough for, and which no copy to shared memory ahead of time is made of).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compute_capability import parse_capabilities, sm_name
from ..errors import KontextError

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_LIMITS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may have (CUDA C++ programming guide, compute capabilities)."""

BYTEWISE = re.compile(r"\b(?:LDG|STG)\.E(?:\.\w+)*?\.[US]8\b")
FEW_BYTES = 1
"""Such instructions that are no fault: a row of fewer bytes than there are threads."""

TENSOR_CORE = re.compile(r"\b((?:UTC)?[HIQO](?:G)?MMA)\b")


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code and what the loader must know."""

    cubin: bytes
    symbol: str
    shared: int
    """Bytes of dynamic shared memory."""
    warps: int
    parameters: int
    """Of the machine code: the arguments, then pointers to scratch memory, null where it asks for none."""
    scratch: int
    """Bytes of global scratch memory that each program needs."""


@dataclass(frozen=True)
class Resources:
    """What the tools say of one kernel's machine code."""

    registers: int
    spilled: int
    """Bytes of a thread's stack."""
    shared: int
    instructions: dict[str, int]
    bytewise: int = 0
    """Instructions that load or store single bytes of device memory."""


def compile_launch(launch: Any, arch: int) -> Compiled:
    """Machine code of a `Launch` for compute capability `arch`.

    Raises:
        KontextError: Triton is missing or cannot compile it.
    """
    from .launch import triton

    if triton is None:
        raise KontextError("compiling kernels needs Triton: pip install 'kontext-export[gpu]'")
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
    except Exception as fault:  # the compiler's exceptions have no common base
        lines = str(fault).strip().splitlines() or [type(fault).__name__]
        raise KontextError(f"{launch.name} cannot be compiled for sm_{arch}: {lines[-1]}") from fault
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
    """A program of NVIDIA's that comes with Triton."""
    from .launch import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise KontextError(f"this Triton comes without {name}")
    return str(path)


def inspect(compiled: Compiled) -> Resources:
    """Resources and tensor-core instructions, by cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        output = subprocess.run(
            [tool("cuobjdump"), "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = re.search(r"REG:(\d+)\s+STACK:(\d+)", output)
    if usage is None:
        raise KontextError("cuobjdump does not say how many registers a kernel has")
    found = Counter(match.group(1) for match in TENSOR_CORE.finditer(output))
    local = len(re.findall(r"\b(?:LDL|STL)\b", output))
    spilled = int(usage.group(2)) if local else 0
    bytewise = len(BYTEWISE.findall(output))
    return Resources(int(usage.group(1)), spilled, compiled.shared, dict(found), bytewise)


def faults(report: Resources, patterns: Sequence[re.Pattern[str]], arch: int) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = []
    if report.spilled:
        found.append(f"spills {report.spilled} bytes a thread")
    if report.shared > SHARED_LIMITS[arch] * 1024:
        found.append(
            f"needs {report.shared / 1024:.0f} KiB of shared memory, sm_{arch} has {SHARED_LIMITS[arch]}"
        )
    if report.bytewise > FEW_BYTES:
        found.append(f"goes over device memory byte by byte ({report.bytewise} instructions)")
    for pattern in patterns:
        if not any(pattern.search(name) for name in report.instructions):
            found.append(f"has no {pattern.pattern.strip(chr(92) + 'b')}")
    return found


def compile_variants(arch: int, only: str | None = None) -> Iterator[tuple[str, Resources, list[str]]]:
    """Compiles the variants of one architecture whose name holds `only`."""
    from .variants import Sizes, attention_variants, variants

    seen = set()
    everything = [*variants(arch), *attention_variants(arch, Sizes(), head_dims=(32, 64))]
    for variant in everything:
        key = variant.launch.key()
        if key in seen or (only is not None and not re.search(only, variant.name)):
            continue
        seen.add(key)
        report = inspect(compile_launch(variant.launch, arch))
        yield variant.name, report, faults(report, variant.instructions(arch), arch)


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
    """Runs the command; returns 0, 1 where a kernel fails its checks, 2 for a mistyped option."""
    parser = argparse.ArgumentParser(prog="python -m kontext.kernels.compile", description=__doc__)
    every = ",".join(map(sm_name, ARCHITECTURES))
    parser.add_argument("--arch", default=every, help=f"architectures (default: {every})")
    parser.add_argument(
        "--only", metavar="PATTERN", help="kernels whose name matches, such as 'attention fp8'"
    )
    options = parser.parse_args(arguments)
    wrong = 0
    try:
        with tempfile.TemporaryDirectory() as cache:  # what is checked is compiled now
            os.environ["TRITON_CACHE_DIR"] = cache
            print(f"{'':8}{'kernel':36}{'registers':>10}{'spilled':>9}{'shared':>9}  tensor cores")
            for arch in parse_architectures(options.arch):
                for name, report, found in compile_variants(arch, options.only):
                    cores = ", ".join(
                        f"{count} {kind}" for kind, count in sorted(report.instructions.items())
                    )
                    line = f"sm_{arch:<5}{name:36}{report.registers:>10}{report.spilled:>9}{report.shared:>9}  {cores}"
                    print(line.rstrip() + (f"  FAULT: {'; '.join(found)}" if found else ""), flush=True)
                    wrong += bool(found)
    except KontextError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    if wrong:
        print(f"{wrong} kernels are at fault", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
