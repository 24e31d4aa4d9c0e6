"""Which files of a folder are an export's, so that --force may delete them: a manifest is not believed alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.export.bundle.folder_kind import BUNDLE, JOURNAL, files_in
from kontext.export.bundle.output_folder import check_output
from kontext.export.server.repository import REPOSITORY, Settings, write_repository


def fake(folder: Path, *listed: str) -> Path:
    """A folder whose manifest lists whatever it likes."""
    folder.mkdir()
    manifest = {
        "format": "kontext-bundle",
        "files": {name: {"size": 0, "sha256": "0" * 64} for name in listed},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "name",
    ["photo.jpg", "weights/photo.jpg", "transformer.onnx/photo.jpg", "engines/notes.txt", "a.onnx", "x.tmp"],
)
def test_a_manifest_that_lists_files_of_others_does_not_get_them_deleted(tmp_path: Path, name: str) -> None:
    folder = fake(tmp_path / "out", name)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    assert list(BUNDLE.strangers(folder)) == [name]
    with pytest.raises(KontextError, match=rf"{re.escape(name)} is not part of the bundle: move it away"):
        check_output(folder, BUNDLE, True)
    assert not BUNDLE.remove(folder)
    assert files_in(folder) == [name]
    assert (folder / name).read_text() == "mine"


def test_files_outside_are_never_deleted(tmp_path: Path) -> None:
    """Listed with "..", or behind a link that has a bundle's name."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "transformer.safetensors").write_text("mine")
    folder = fake(
        tmp_path / "out",
        "../mine/transformer.safetensors",
        "weights/transformer.safetensors",
        "vae_decoder.onnx",
    )
    (folder / "vae_decoder.onnx").symlink_to(mine / "transformer.safetensors")
    (folder / "weights").symlink_to(mine)
    with pytest.raises(KontextError, match="weights is not part of the bundle"):
        check_output(folder, BUNDLE, True)
    assert not BUNDLE.remove(folder)
    assert files_in(folder) == ["weights"]
    assert (mine / "transformer.safetensors").read_text() == "mine"


def test_every_file_of_an_export_is_its_own(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for backend in ("python", "onnxruntime"):
        output = write_repository(bundle, tmp_path / backend, Settings(backend=backend))
        (output / "models/kontext/1/kontext/__pycache__").mkdir()
        (output / "models/kontext/1/kontext/__pycache__/errors.cpython-311.pyc").touch()
        assert list(REPOSITORY.strangers(output)) == []
        assert all(map(REPOSITORY.is_own, files_in(output)))
        assert REPOSITORY.remove(output)
    for name in (
        "kernels/sm_89/kernels.json",
        "kernels/sm_89/000-norm.cubin",
        "engines/sm89/x.engine",
        JOURNAL,
    ):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).touch()  # not listed: of a build that was killed
    (bundle / "weights/.transformer.safetensors.0123abcd.tmp").touch()
    assert all(map(BUNDLE.is_own, files_in(bundle)))
    (bundle / JOURNAL).unlink()
    assert list(BUNDLE.strangers(bundle)) == []
    assert BUNDLE.remove(bundle)
    assert not bundle.exists()


def test_a_fake_repository(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in ("photo.jpg", "models/kontext/1/notes.md", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    listed = {"format": "kontext-triton-repository", "files": files_in(folder)}
    (folder / "repository.json").write_text(json.dumps(listed))
    assert list(REPOSITORY.strangers(folder)) == ["models/kontext/1/notes.md", "photo.jpg"]
    with pytest.raises(KontextError, match="is not part of the repository"):
        check_output(folder, REPOSITORY, True)


def test_the_marker_goes_last(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is interrupted, what is left is still known to be a bundle, or empty."""
    for count in range(len(files_in(tiny_bundle)) + 1):
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / f"{count}"))
        left = iter(range(count))
        unlink = Path.unlink

        def killed(path: Path, left=left, unlink=unlink, **options: bool) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            unlink(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            try:
                BUNDLE.remove(folder)
            except KeyboardInterrupt:
                assert BUNDLE.is_at(folder)
                assert list(BUNDLE.strangers(folder)) == []
            else:
                assert not folder.exists()
