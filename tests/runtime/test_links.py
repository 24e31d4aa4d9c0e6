"""Files that a bundle takes weights from: its exporter's own, those that are allowed, and no others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from kontext.bundle_folder import MANIFEST_NAME
from kontext.errors import BundleError, KontextError
from kontext.runtime import Pipeline
from kontext.runtime.bundle import GRAPHS, Bundle
from kontext.runtime.links import is_own, own_folder, remember_own

HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
NAME = "links/model.safetensors"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def add_link(folder: Path, file: Path, **changes: object) -> None:
    """Writes a safetensors file of one tensor to `file` and makes it the bundle's; `changes` are of its entry."""
    data = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)
    file.write_bytes(data)
    entry = {
        "path": str(file),
        "size": len(data),
        "header_sha256": hashlib.sha256(HEADER).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        **changes,
    }
    name = str(entry.pop("name", NAME))
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["links"] = {name: entry}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def fault(folder: Path, **options: Any) -> str:
    """The line that refuses a bundle's links."""
    with pytest.raises(KontextError) as caught:
        Bundle.open(folder, **options).linked_files  # noqa: B018
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_bundle_without_links(copy: Path) -> None:
    bundle = Bundle.open(copy)
    assert (bundle.links, bundle.linked_files) == ({}, {})


def test_a_bundle_from_elsewhere_names_a_file(copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    before = Bundle.open(copy)
    add_link(copy, path)
    found = fault(copy)
    assert found.startswith(
        f"{copy} takes weights from {path}, and you have not exported it on this machine: "
    )
    assert "--allow-links" in found
    for device in ("cpu", "auto"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "auto" blamed ONNX Runtime, and then advised --device cpu
            with pytest.raises(BundleError) as caught:
                Pipeline.load(copy, device=device)
        assert str(caught.value) == found
    bundle = Bundle.open(copy, allow_links=True)
    assert bundle.links[NAME].path == path
    assert bundle.weight_bytes == before.weight_bytes + path.stat().st_size
    own = {f"weights/{name}.safetensors": copy / f"weights/{name}.safetensors" for name in GRAPHS}
    assert bundle.linked_files == {**own, NAME: path}
    Pipeline.load(copy, device="cpu", allow_links=True)


def test_one_that_this_user_exported(copy: Path, tmp_path: Path) -> None:
    add_link(copy, tmp_path / "model.safetensors")
    remember_own(Bundle.open(copy).digest)
    assert NAME in Bundle.open(copy).linked_files
    moved = copy.rename(tmp_path / "moved")
    assert NAME in Bundle.open(moved).linked_files
    add_link(moved, tmp_path / "another.safetensors")  # whoever changed the manifest was not the exporter
    assert "you have not exported it on this machine" in fault(moved)


def test_a_bundle_that_is_opened_touches_nothing_outside_it(copy: Path, tmp_path: Path) -> None:
    """A FIFO would hold the reader for ever, and a device would never end."""
    add_link(copy, tmp_path / "model.safetensors", path=str(tmp_path / "pipe"))
    os.mkfifo(tmp_path / "pipe")
    assert Bundle.open(copy, allow_links=True).links[NAME].path == tmp_path / "pipe"
    assert "pipe is not a regular file, and the bundle takes weights" in fault(copy, allow_links=True)
    if Path("/dev/zero").exists():
        add_link(copy, tmp_path / "model.safetensors", path="/dev/zero")
        assert "/dev/zero is not a regular file, and the bundle takes" in fault(copy, allow_links=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"path": "model.safetensors"},
            "path must be an absolute path, not 'model.safetensors'",
        ),  # it exists
        ({"path": "/nowhere/model.safetensors"}, "does not exist, and the bundle takes weights from it"),
        ({"size": 71}, "is not the file that"),
        ({"header_sha256": "0" * 64}, "is not the file that"),
        ({"header_sha256": hashlib.sha256(b"").hexdigest()}, "is not the file that"),
        ({"header_sha256": "0" * 63}, "must be 64 hexadecimal digits"),
        ({"sha256": "../../x"}, "must be 64 hexadecimal digits"),
        ({"size": 7}, "size must be a whole number from 8"),
        ({"name": "../model.safetensors"}, "is not a path inside the bundle"),
    ],
)
def test_links_to_other_files_are_refused(
    copy: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_link(copy, tmp_path / "model.safetensors", **changes)
    assert message in fault(copy, allow_links=True)


@pytest.mark.parametrize(
    "data",
    [
        b"root:x:0:0:root:/root:/bin/bash\n",
        bytes(16),
        b"",
        (100_000_001).to_bytes(8, "little")
        + bytes(64),  # beyond the format's limit, so that no header is read
        (2**63).to_bytes(8, "little") + bytes(64),
    ],
)
def test_what_is_no_safetensors_file_is_never_linked(copy: Path, tmp_path: Path, data: bytes) -> None:
    """Whatever the manifest says of it: its first 8 bytes are no length of a header that it has."""
    (tmp_path / "file").write_bytes(data)
    nothing = hashlib.sha256().hexdigest()
    size = max(len(data), 8)
    add_link(copy, tmp_path / "other", path=str(tmp_path / "file"), size=size, header_sha256=nothing)
    assert "file is not" in fault(copy, allow_links=True)


def test_verify_reads_the_whole_file(copy: Path, tmp_path: Path) -> None:
    """The header's digest is compared at every use; a changed tensor is only seen by reading everything."""
    path = tmp_path / "model.safetensors"
    add_link(copy, path)
    bundle = Bundle.open(copy, allow_links=True)
    read: list[int] = []
    bundle.verify(read.append)
    assert sum(read) == bundle.bytes_to_verify()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert NAME in bundle.linked_files
    with pytest.raises(KontextError, match=r"has changed since .* was exported over it; export it again"):
        bundle.verify()


def test_a_bundle_from_before_whole_files_were_recorded(copy: Path, tmp_path: Path) -> None:
    add_link(copy, tmp_path / "model.safetensors")
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    del manifest["links"][NAME]["sha256"]
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    bundle = Bundle.open(copy, allow_links=True)
    assert NAME in bundle.linked_files
    with pytest.raises(KontextError, match="was made before whole files were recorded, export it again"):
        bundle.verify()


def test_a_state_folder_that_cannot_be_written(own_state: Path) -> None:
    own_state.write_text("a file")
    with pytest.warns(UserWarning, match="opening the bundle will need --allow-links"):
        remember_own("sha256:" + "0" * 64)
    assert not is_own("sha256:" + "0" * 64)


def test_the_folder_of_records(own_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_folder() == own_state / "kontext-export/linked-bundles"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_folder() == tmp_path / ".local/state/kontext-export/linked-bundles"
