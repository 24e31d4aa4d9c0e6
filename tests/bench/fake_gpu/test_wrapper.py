"""The command that runs another one on a fake GPU. PyTorch on it needs a build for CUDA, which CI does not have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from kontext.bench import cli  # noqa: E402
from kontext.bench.fake_gpu import wrapper  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the libraries are for Linux")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["fake-gpu", "--memory", "much", "--", "true"]) == 2
    assert cli.main(["fake-gpu", "--architecture", "sm_75", "--", "true"]) == 2
    if torch.version.cuda is None:
        assert cli.main(["fake-gpu", "--", "true"]) == 2
        assert "it must be a build for CUDA 13" in capsys.readouterr().err
    monkeypatch.setattr(wrapper, "check_torch", lambda _: None)
    words = "import os, sys; sys.exit(int(os.environ['FAKE_GPU_MEMORY']) // 10**9)"
    assert cli.main(["fake-gpu", "--memory", "12GB", "--", sys.executable, "-c", words]) == 12


def test_page_locking_can_be_refused(tmp_path: Path) -> None:
    given = wrapper.environment(tmp_path, 10**9, 89)
    refused = wrapper.environment(tmp_path, 10**9, 89, page_locking=False)
    assert {name: (given[name], refused[name]) for name in given if given[name] != refused[name]} == {
        "FAKE_GPU_PAGE_LOCKING": ("1", "0")
    }
