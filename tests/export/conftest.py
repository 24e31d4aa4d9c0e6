"""Exports that do not trace, and quantized bundles made by them."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

Untraced = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture
def fast_trace(tiny_bundle: Path, untraced: Untraced) -> Iterator[None]:
    """Exports of the random checkpoint in fp32 take a moment."""
    with untraced(tiny_bundle):
        yield


@pytest.fixture(scope="session")
def fp8_bundle(shared_folder: Path, tiny_checkpoint: Path, tiny_bundle: Path, untraced: Untraced) -> Path:
    """The export of the random checkpoint with --fp8, computing in fp32."""
    with untraced(tiny_bundle):
        return quantized_bundle("fp8", shared_folder, tiny_checkpoint)


@pytest.fixture(scope="session")
def int8_bundle(shared_folder: Path, tiny_checkpoint: Path, tiny_bundle: Path, untraced: Untraced) -> Path:
    """The export of the random checkpoint with --int8, computing in fp32."""
    with untraced(tiny_bundle):
        return quantized_bundle("int8", shared_folder, tiny_checkpoint)


@pytest.fixture(scope="session")
def int4_bundle(shared_folder: Path, tiny_checkpoint: Path, tiny_bundle: Path, untraced: Untraced) -> Path:
    """The export of the random checkpoint with --int4, computing in fp32."""
    with untraced(tiny_bundle):
        return quantized_bundle("int4", shared_folder, tiny_checkpoint)


def quantized_bundle(flag: str, shared: Path, checkpoint: Path) -> Path:
    """Made once for all workers of a test run."""
    from kontext.export.cli.main import main

    folder = shared / f"bundle-{flag}"
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            assert main([str(checkpoint), "-o", str(folder), f"--{flag}", "--quiet"]) == 0
    return folder


@pytest.fixture(scope="session")
def embedded_bundles(shared_folder: Path, untraced: Untraced) -> Callable[[str], Path]:
    """The embedded model's export in a format such as bf16 or fp16-int4. Do not change it: copy it.

    Quantized ones are made from the graphs of the plain ones, so the embedded model is traced twice at the most.
    """

    def get(name: str) -> Path:
        from kontext.export.cli.main import main

        folder = shared_folder / f"embedded-{name}"
        compute, _, quantization = name.partition("-")
        plain = get(compute) if quantization else None
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                with contextlib.nullcontext() if plain is None else untraced(plain):
                    flags = [f"--{flag}" for flag in name.split("-")]
                    assert main(["-o", str(folder), *flags, "--quiet"]) == 0
        return folder

    return get
