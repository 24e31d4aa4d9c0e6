"""Compiled blocks against the same blocks as Python runs them, and what compilation refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from kontext.decibels import psnr  # noqa: E402
from kontext.errors import KontextError  # noqa: E402
from kontext.runtime import Pipeline, TorchOptions  # noqa: E402
from kontext.runtime.backends.torch import compile  # noqa: E402
from kontext.runtime.backends.torch.backend import TorchBackend  # noqa: E402
from kontext.runtime.bundle import Bundle  # noqa: E402
from kontext.runtime.cli import main  # noqa: E402

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler for PyTorch's code generator"
)


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing compiled before, in this process or on disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def edited(folder: Path, *, steps: int = 2, **options: Any) -> Image.Image:
    bundle = Bundle.open(folder)
    picture = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    return Pipeline(bundle, TorchBackend(bundle, "cpu", TorchOptions(**options))).edit(
        picture, "x", steps=steps
    )


@needs_compiler
def test_each_kind_of_block_is_compiled_once_and_whole(embedded: dict[str, Path]) -> None:
    """Two double and four single blocks: two graphs, with our kernels in them and without a break."""
    picture = edited(embedded["fp32"], compile=True)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert psnr(picture, edited(embedded["fp32"])) >= 60


@needs_compiler
def test_compiled_blocks_go_with_the_other_options(tiny_bundle: Path) -> None:
    options: dict[str, Any] = {"cache": 0.2, "reuse_reference": 2, "offload": True, "attention": "int8"}
    compiled = edited(tiny_bundle, steps=5, compile=True, **options)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert psnr(compiled, edited(tiny_bundle, steps=5, **options)) >= 50


def test_without_a_compiler(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    words = [str(tiny_bundle), "-p", "x", "-o", str(tmp_path / "out.png"), "--backend", "torch"]
    assert main([*words, "--device", "cpu", "--compile"]) == 2
    assert capsys.readouterr().err == (
        "error: --compile needs a C++ compiler, but g++ is not on the PATH: install one, name it in CXX, or run "
        "without --compile\n"
    )
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(KontextError, match="my-compiler is not on the PATH"):
        compile.check_compiler(torch.device("cpu"))
    monkeypatch.setattr(compile, "triton", None)
    with pytest.raises(KontextError, match="--compile needs Triton"):
        compile.check_compiler(torch.device("cuda"))


@needs_compiler
def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'cannot compile' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(broken),))
    block = compile.compiled_block(lambda x: x.sin_().cos_())  # type: ignore[arg-type, return-value]
    block(torch.ones(3))  # the first of a shape runs as it is
    with pytest.raises(KontextError, match=r"torch\.compile failed, run without --compile: "):
        block(torch.ones(3))


def test_blocks_beyond_the_limit_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "VARIANTS", 2)
    calls: list[int] = []

    def double(x: Any) -> None:
        if not torch.compiler.is_compiling():
            calls.append(len(x))
        x.mul_(2)

    monkeypatch.setattr(torch, "compile", lambda *words, **names: compile_eagerly(*words, **names))
    block = compile.compiled_block(double)
    for length in range(2, 8):
        for _ in range(2):
            x = torch.ones(length)
            block(x)
            assert x.tolist() == [2.0] * length
    assert len(calls) >= 6


real_compile = torch.compile


def compile_eagerly(*words: Any, **names: Any) -> Any:
    """torch.compile without the code generator."""
    return real_compile(*words, **names, backend="eager")
