"""The ahead-of-time compiler: some kernels for three architectures, and its checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.kernels import compile, variants


def command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, "-m", "kontext.kernels.compile", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("arch", "pattern", "instructions"),
    [
        ("sm_90", "^attention fp8, 128$|^adaln fp8$|^scaled_gemm fp8, qkv$", "QGMMA"),
        ("sm_89", "^norm_rope fp8, double$|^int4_gemm 16-bit, proj, rank 32$", "HMMA"),
        ("sm_120", "^attention int8, 128$", "IMMA"),
        # The block-scaled instructions: Triton would otherwise unpack both operands to bf16.
        ("sm_120", "^nvfp4_gemm, proj, rank 32$|^adaln nvfp4$", "OMMA"),
        ("sm_100", "^nvfp4_gemm, proj, rank 32$", "UTCOMMA"),
    ],
)
def test_kernels_compile_without_spilling(arch: str, pattern: str, instructions: str) -> None:
    done = command("--arch", arch, "--only", pattern)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == pattern.count("|") + 1
    assert all(line.startswith(arch) for line in lines)
    assert instructions in done.stdout


def test_what_counts_as_a_fault() -> None:
    patterns = (re.compile(r"\bQGMMA\b"),)
    good = compile.Resources(200, 0, 100_000, {"QGMMA": 8})
    assert compile.faults(good, patterns, 90) == []
    bad = compile.Resources(255, 64, 240_000, {"HMMA": 8}, 16)
    assert compile.faults(bad, patterns, 90) == [
        "spills 64 bytes a thread",
        "needs 234 KiB of shared memory, sm_90 has 227",
        "accesses device memory byte by byte (16 instructions)",
        "has no QGMMA",
    ]


def test_what_goes_byte_by_byte() -> None:
    sass = "LDG.E.U8.CONSTANT R1\nLDG.E.EL.S8 R1\nSTG.E.U8 [R2]\nLDG.E.128 R4\nLDS.U8 R3\nLDG.E.U16 R1\nLDGSTS.E R1"
    assert len(compile.BYTEWISE.findall(sass)) == 3


def test_architectures_by_name() -> None:
    assert compile.parse_architectures("sm_89, 12.0") == (89, 120)
    with pytest.raises(KontextError, match="not for sm_75"):
        compile.parse_architectures("sm_75")


def test_refusals(tmp_path: Path) -> None:
    done = command("--arch", "sm_70")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    launch = next(iter(variants.variants(90))).launch
    if type(launch.kernel).__name__ == "InterpretedFunction":
        with pytest.raises(KontextError, match="while TRITON_INTERPRET is set"):
            compile.compile_launch(launch, 90)
