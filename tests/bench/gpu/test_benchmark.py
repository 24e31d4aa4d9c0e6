"""The GPU benchmark's subset for machines without one: the same code at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.bench import cli  # noqa: E402
from kontext.bench.gpu import benchmark, kernels  # noqa: E402


def test_it_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert cli.main(["gpu", "--device", "cpu", "--json", str(path)]) == 0
    results = json.loads(path.read_text())
    assert results["skipped"] == {}
    assert all(each["passed"] for each in results["correctness"].values())
    assert {
        "adaln nvfp4", "norm_rope q", "attention int8", "scaled_gemm fp8", "int4_gemm fp8", "nvfp4_gemm",
    } <= set(results["correctness"])  # fmt: skip
    assert set(results["correctness of the step"]) == {
        "step bf16",
        "step fp8",
        "step int4",
        "step int4 fp8",
        "step nvfp4",
    }
    assert all(each["passed"] for each in results["correctness of the step"].values())
    assert results["step, ours int4"]["weights_gib"] < results["step, ours bf16"]["weights_gib"]
    assert {"step fp8 over eager", "worst elementwise pass, share of copy"} <= set(results["ratios"])
    assert "step fp8 over eager" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


def test_sections_after_the_budget_are_skipped_and_faults_are_kept(tmp_path: Path) -> None:
    sections = benchmark.Sections(tmp_path / "results.json", budget=1000)

    def fault() -> None:
        raise RuntimeError("no such instruction\nand more")

    assert sections.run("one", lambda: {"ms": 1.23456789}) == {"ms": 1.23456789}
    sections.run("two", fault)
    sections.budget = -1
    sections.run("three", lambda: 1)
    sections.save()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["one"] == {"ms": 1.2346}
    assert saved["skipped"]["two"] == "RuntimeError: no such instruction"
    assert saved["skipped"]["three"].startswith("out of time after ")


def test_cuda_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["gpu", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: PyTorch finds no CUDA device\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_kernel_on_the_device() -> None:
    """Odd lengths, all head sizes, fresh data."""
    for heads in (2, 4, 8):
        shape = kernels.Shape(hidden=256, heads=heads, mlp=512, text=7, image=300)
        found = kernels.correctness(shape, torch.device("cuda"))
        assert not [name for name, each in found.items() if not each["passed"]]
