"""Hub ids, offline: cached models are used, others are one clear error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("huggingface_hub")

from kontext.errors import KontextError
from kontext.export.cli import main
from kontext.model import hub


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_what_is_a_hub_id(tmp_path: Path) -> None:
    assert hub.is_hub_id("black-forest-labs/FLUX.1-Kontext-dev")
    assert hub.is_hub_id("owner/name@refs/pr/1")
    (tmp_path / "owner/name").mkdir(parents=True)
    for text in ("owner/name", "model", "/a/b", "a/b/c", "./a/b", "a b/c", "../x"):
        assert not hub.is_hub_id(text)


def test_a_cached_snapshot(offline: Path, tiny_checkpoint: Path) -> None:
    """In the hub's own layout: blobs, and a snapshot of links to them."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = offline / "models--owner--FLUX.1-Kontext-tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(commit)
    blobs, snapshot = model / "blobs", model / "snapshots" / commit
    shutil.copytree(tiny_checkpoint, blobs)
    for path in blobs.rglob("*"):
        if path.is_file():
            link = snapshot / path.relative_to(blobs)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    folder = hub.download_model("owner/FLUX.1-Kontext-tiny")
    from kontext.model.checkpoint import Checkpoint

    assert Checkpoint.open(folder).config.name in ("kontext-random", "FLUX.1-Kontext-tiny")


def test_not_there_and_not_reachable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KontextError, match="the hub cannot be reached"):
        hub.download_model("black-forest-labs/FLUX.1-Kontext-dev")
    assert main.main(["owner/name", "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no file or folder owner/name")
    assert error.count("\n") == 1
