"""The random checkpoint's bundles in every quantized format, over the graphs of its fp32 bundle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundles(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
) -> dict[str, Path]:
    """Format → bundle. Do not change them: copy them."""
    pytest.importorskip("onnx")
    from kontext.export.cli import main

    folder = tmp_path_factory.mktemp("fidelity")
    with untraced(tiny_bundle):
        for name in ("fp8", "int8", "int4"):
            words = [str(tiny_checkpoint), "-o", str(folder / name), f"--{name}", "--fp32", "--quiet"]
            assert main.main(words) == 0
    return {"fp32": tiny_bundle, "fp8": folder / "fp8", "int8": folder / "int8", "int4": folder / "int4"}
