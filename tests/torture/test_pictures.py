"""Damaged pictures for both readers: Python's in a process of its own, C++'s under AddressSanitizer and
UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..runtime.cpp.conftest import CppBuild, kept_folder, sanitized  # noqa: F401
from .mutated_pictures import mutated
from .trying import SECONDS, in_processes

HERE = Path(__file__).resolve().parent


def report(
    reader: str, counts: Counter[str], faults: dict[int, str], kept: Path, formats: tuple[str, ...]
) -> None:
    """Prints the counts, keeps what broke the reader, and fails if anything did."""
    print(f"\n{reader}: {dict(counts)}, {len(faults)} faults")
    for seed, fault in list(faults.items())[:50]:
        name, data = mutated(seed, formats)
        (kept / f"{reader}-{seed}.{name.split()[0]}").write_bytes(data)
        print(f"seed {seed} ({name}): {fault}")
    assert not faults


def test_python(inputs: range, kept: Path, tmp_path: Path) -> None:
    def command(first: int) -> list[object]:
        return [sys.executable, HERE / "read_pictures.py", first, inputs.stop, tmp_path / "seed"]

    counts, faults = in_processes(command, inputs, tmp_path / "seed", silent=True)
    report("python", counts, faults, kept, ())


@pytest.fixture
def probe(sanitized: CppBuild) -> Iterator[Callable[[], subprocess.Popen[str]]]:  # noqa: F811
    """Starts the program that reads pictures whose names it gets."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "ASAN_OPTIONS": "hard_rss_limit_mb=2560"}

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        words = [str(sanitized.probe), "pictures"]
        started.append(
            subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_cpp(inputs: range, kept: Path, tmp_path: Path, probe: Callable[[], subprocess.Popen[str]]) -> None:
    formats = ("png", "jpeg", "webp")
    counts: Counter[str] = Counter()
    faults: dict[int, str] = {}
    reader = probe()
    for seed in inputs:
        (tmp_path / "it").write_bytes(mutated(seed, formats)[1])
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(f"{tmp_path / 'it'}\n")
        reader.stdin.flush()
        answered = select.select([reader.stdout], [], [], SECONDS)[0]
        answer = reader.stdout.readline() if answered else "no answer"
        if answer.startswith("error: "):
            counts["refused"] += 1
        elif answer[:1].isdigit():
            counts["read"] += 1
        else:
            reader.kill()
            faults[seed] = answer + (reader.stdout.read() or "")[-3000:]
            reader = probe()
    report("cpp", counts, faults, kept, formats)
