"""What a bundle records of its checkpoint's files: no path, and hub ids for what is in the hub's cache.

The cache's layout is huggingface_hub's own: models--OWNER--NAME/snapshots/COMMIT, with links to blobs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kontext.model.source_names import seen, source_name

SNAPSHOT = "/disk/mine/.cache/huggingface/hub/models--black-forest-labs--FLUX.1-Kontext-dev/snapshots/abc123"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/disk/mine/secret/flux1-kontext-dev.safetensors", "flux1-kontext-dev.safetensors"),
        ("models/FLUX.1-Kontext-dev/", "FLUX.1-Kontext-dev"),
        ("/models/dev/transformer/..", "dev"),
        ("/loras/plain/adapter_model.safetensors", "plain/adapter_model.safetensors"),
        ("/dev/vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        ("/models/model", "model"),
        ("/adapter_model.safetensors", "adapter_model.safetensors"),
        (SNAPSHOT, "black-forest-labs/FLUX.1-Kontext-dev@abc123"),
        (f"{SNAPSHOT}/vae/x.safetensors", "black-forest-labs/FLUX.1-Kontext-dev@abc123:vae/x.safetensors"),
        ("/hub/models--me--a--b/snapshots/1", "me/a--b@1"),
    ],
)
def test_names(path: str, name: str) -> None:
    assert source_name(Path(path)) == name


def test_names_that_a_reader_would_refuse() -> None:
    """Of a file that a user may well have: the export would fail at its end."""
    assert seen("my\nmodel\u202e é 日本") == "my?model? é 日本"
    assert source_name(Path(os.fsdecode(b"/models/s\xff\n.safetensors"))) == "s??.safetensors"
    assert source_name(Path(os.fsdecode(b"/lo\xff/lora.safetensors"))) == "lo?/lora.safetensors"


def test_this_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    monkeypatch.chdir(tmp_path / "dev")
    assert source_name(Path()) == "dev"


def test_files_in_the_hubs_cache_are_not_resolved(tmp_path: Path) -> None:
    folder = tmp_path / "models--o--n" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "blob").touch()
    (folder / "a.gguf").symlink_to(tmp_path / "blob")
    assert source_name(folder / "a.gguf") == "o/n@1:a.gguf"
