"""`--kernels`: compiled kernels in the bundle, and errors before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.export.cli.main import main
from kontext.kernels import archive
from kontext.runtime.bundle import Bundle


def test_kernels_are_files_of_the_bundle(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_for = []

    def compiled(arch: int, sizes: archive.Sizes, **_options: Any) -> Iterator[tuple[str, bytes]]:
        compiled_for.append((arch, sizes.hidden, sizes.heads, str(sizes.compute)))
        yield "000-adaln_kernel.cubin", b"machine code"
        yield archive.INDEX, b"{}"

    monkeypatch.setattr(archive, "archive", compiled)
    out = tmp_path / "bundle"
    words = [str(tiny_checkpoint), "-o", str(out), "--bf16", "--quiet", "--kernels", "sm_89,sm_120"]
    assert main(words) == 0
    assert compiled_for == [(89, 64, 2, "torch.bfloat16"), (120, 64, 2, "torch.bfloat16")]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kernels"] == [
        {"architecture": "sm_120", "index": "kernels/sm_120/kernels.json"},
        {"architecture": "sm_89", "index": "kernels/sm_89/kernels.json"},
    ]
    bundle = Bundle.open(out)
    bundle.verify()
    assert bundle.files["kernels/sm_89/000-adaln_kernel.cubin"].size == len(b"machine code")


def test_refusals_are_one_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "bundle")
    assert main([str(tiny_checkpoint), "-o", out, "--kernels", "sm_75"]) == 2
    assert "error: there are kernels for sm_80" in capsys.readouterr().err
    assert main([str(tiny_checkpoint), "-o", out, "--fp32", "--kernels", "sm_89"]) == 2
    assert "not in fp32: add --bf16" in capsys.readouterr().err
    assert not Path(out).exists()
