"""Compiled engines as data: entries that are not trusted, the choice for a GPU and a library, profiles, batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from kontext.errors import KontextError
from kontext.installation import install_command
from kontext.runtime import Pipeline, engines
from kontext.runtime.bundle import Bundle
from kontext.runtime.bundle_files import FileEntry
from kontext.runtime.engines import LIBRARIES, Profile, choose_engines, chunks, platform_name, read_engines

VERSION = "1.7.1.116"


def with_engines(folder: Path, **changes: Any) -> Bundle:
    """A bundle whose manifest has an engine of every graph on sm89, each entry with these changes."""
    bundle = Bundle.open(folder)
    entries, files = [], dict(bundle.files)
    for graph, graph_entry in bundle.graphs.items():
        files[f"engines/{graph}"] = FileEntry(1, "0" * 64)
        entry = {
            "graph": graph,
            "file": f"engines/{graph}",
            "library": "rtx",
            "version": VERSION,
            "platform": platform_name(),
            "target": "sm89",
            "precision": "fp16",
            "weights": "inside",
            "graph_sha256": bundle.files[graph_entry.path.name].sha256,
            "profiles": [{"use": "x", "inputs": {"a": [[1, 0], [1, 2], [2, 4]]}}],
        }
        entries.append(entry | changes)
    return dataclasses.replace(bundle, files=files, manifest={**bundle.manifest, "engines": entries})


def test_the_engines_for_a_gpu(tiny_bundle: Path) -> None:
    bundle = with_engines(tiny_bundle)
    chosen = choose_engines(bundle, "rtx", VERSION, "sm89")
    assert list(chosen) == list(bundle.graphs)
    assert all(entry.graph == graph for graph, entry in chosen.items())
    assert not any(entry.streams for entry in chosen.values())


def test_the_last_of_equal_engines_is_chosen(tiny_bundle: Path) -> None:
    bundle = with_engines(tiny_bundle)
    bundle.manifest["engines"].append(bundle.manifest["engines"][0] | {"precision": "newer"})
    assert len(read_engines(bundle)) == len(bundle.graphs) + 1
    assert choose_engines(bundle, "rtx", VERSION, "sm89")["text_encoder"].precision == "newer"


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "is missing"), (b"", "has 0 bytes, the manifest says 1")]
)
def test_a_damaged_engine_is_an_error_where_it_is_wanted(
    tiny_bundle: Path, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """The bundle opens and runs elsewhere; the error has the command that builds the engine again."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    bundle = with_engines(folder)
    manifest = {**bundle.manifest, "files": dict(bundle.manifest["files"])}
    for name in set(bundle.files) - set(manifest["files"]):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        manifest["files"][name] = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    Bundle.open(folder).verify()
    damaged = folder / "engines" / "transformer"
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    bundle = Bundle.open(folder)
    message = f"transformer {problem}: kontext-export {folder} --engine rtx --target sm89$"
    with pytest.raises(KontextError, match=message):
        choose_engines(bundle, "rtx", VERSION, "sm89")
    with pytest.raises(KontextError, match=f"transformer {problem}: build the engines again"):
        bundle.verify()
    with pytest.raises(KontextError, match="are for sm89, but this GPU is sm120"):
        choose_engines(bundle, "rtx", VERSION, "sm120")
    assert Pipeline.load(bundle, device="cpu").edit(None, "x", steps=1).size


@pytest.mark.parametrize(
    ("library", "version", "target", "changes", "message"),
    [
        ("tensorrt", VERSION, "sm89", {}, r"has no TensorRT engine of text_encoder: .* --engine tensorrt"),
        (
            "rtx",
            VERSION,
            "sm120",
            {},
            r"are for sm89, but this GPU is sm120: kontext-export .* --target sm120",
        ),
        (
            "rtx",
            "1.8",
            "sm89",
            {},
            r"with TensorRT for RTX 1\.7\.1\.116, but 1\.8 is installed: .*rtx==1\.7\.1",
        ),
        (
            "rtx",
            VERSION,
            "sm89",
            {"platform": "windows-amd64"},
            f"was built for windows-amd64, but this machine is {platform_name()}",
        ),
        ("rtx", VERSION, "sm89", {"graph_sha256": "0" * 64}, "was built from another graph"),
    ],
)
def test_engines_that_do_not_fit(
    tiny_bundle: Path, library: str, version: str, target: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(KontextError, match=message):
        choose_engines(with_engines(tiny_bundle, **changes), library, version, target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": "dreams"}, "graph must be one of .*, not 'dreams'"),
        ({"library": "onnx"}, "library must be one of rtx, tensorrt, not 'onnx'"),
        ({"weights": "elsewhere"}, "weights must be one of .*, not 'elsewhere'"),
        ({"target": "8.9"}, "target must be an architecture such as sm89"),
        ({"file": "../engine"}, "is not a path inside the bundle"),
        ({"file": "engines/other"}, "is not among the bundle's files"),
        ({"profiles": []}, "profiles must be a list of profiles"),
        ({"profiles": [{"use": "x", "inputs": {"a": [[1], [2, 3], [4]]}}]}, "must be 1 whole numbers"),
        ({"profiles": [{"use": "x", "inputs": {"a": 3}}]}, "must be three shapes"),
        ({"profiles": [{"use": "x", "inputs": {}}]}, "inputs must name an input"),
        ({"version": 3}, "version must be a non-empty string"),
        ({"streams": "often"}, "streams must be true or false, not 'often'"),
    ],
)
def test_manifests_are_not_trusted(tiny_bundle: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(KontextError, match=message):
        read_engines(with_engines(tiny_bundle, **change))


@pytest.mark.parametrize("listing", [{}, "engines", [1]])
def test_a_listing_that_is_none(tiny_bundle: Path, listing: Any) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle = dataclasses.replace(bundle, manifest={**bundle.manifest, "engines": listing})
    with pytest.raises(KontextError, match="engines must be a list of objects"):
        read_engines(bundle)


@pytest.mark.parametrize("device", ["rtx", "tensorrt"])
def test_without_the_library(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    library = LIBRARIES[device]
    for name, message in (
        (library.module, re.escape(f"is not installed: {install_command(library.extra)}")),
        ("libstrange", "cannot be loaded: No module named 'libstrange'"),
    ):

        def missing(_module: str, name: str = name) -> Any:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        with monkeypatch.context() as patch:
            patch.setattr(engines.importlib, "import_module", missing)
            with pytest.raises(KontextError, match=message):
                Pipeline.load(tiny_bundle, device=device)


@pytest.mark.parametrize(
    ("count", "largest", "sizes"), [(1, 4, [1]), (4, 4, [4]), (5, 4, [3, 2]), (28, 64, [28]), (0, 4, [0])]
)
def test_rows_are_cut_into_few_and_equal_runs(count: int, largest: int, sizes: list[int]) -> None:
    parts = chunks(count, largest)
    assert [part.stop - part.start for part in parts] == sizes


def test_a_profile_takes_what_lies_between() -> None:
    profile = Profile("x", {"a": ((1, 0), (1, 2), (2, 4))})
    assert profile.takes({"a": (1, 0)})
    assert profile.takes({"a": (2, 4)})
    assert not profile.takes({"a": (3, 4)})
    assert not profile.takes({"a": (1, 2, 1)})
