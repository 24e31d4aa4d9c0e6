"""Writing layouts: atomic, resumed, refused where something is in the way."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.folder_kind import JOURNAL  # noqa: E402
from kontext.export.layouts import write  # noqa: E402
from kontext.export.layouts.bfl import BFL  # noqa: E402
from kontext.export.layouts.layout import MARKER, Layout, PlannedFile  # noqa: E402
from kontext.export.layouts.source import WeightSource  # noqa: E402
from kontext.export.weights import write as weights  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402

RECIPE = choose_recipe(tuple(NETWORKS), 1, "fp32")


def plan(source: WeightSource) -> Mapping[str, PlannedFile]:
    return {"a.json": lambda: b"{}", "in/b.safetensors": next(iter(BFL.plan(source).values()))}


FOLDER = dataclasses.replace(BFL, name="test", suffix="", names=r"a\.json|in/b\.safetensors", plan=plan)
LAYOUTS = {"file": (BFL, "x.safetensors"), "folder": (FOLDER, "x")}


@pytest.fixture(params=["file", "folder"])
def chosen(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Layout, Path]:
    layout, name = LAYOUTS[request.param]
    return layout, tmp_path / name


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()
    }


def stop_at(patch: pytest.MonkeyPatch, weight: str) -> None:
    original = WeightSource.read

    def read(self: WeightSource, each: object) -> torch.Tensor:
        if each.name == weight:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return original(self, each)  # type: ignore[arg-type]

    patch.setattr(WeightSource, "read", read)


def test_a_stopped_run_leaves_nothing_under_the_name_and_is_resumed(
    checkpoint: Checkpoint, chosen: tuple[Layout, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, output = chosen
    whole = tmp_path / "whole" / output.name
    whole.parent.mkdir()
    write.write_layout(checkpoint, layout, RECIPE, whole)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "SYNC_BYTES", 1000)
        stop_at(patch, "double_blocks.0.img_attn.proj.weight")
        with pytest.raises(KeyboardInterrupt):
            write.write_layout(checkpoint, layout, RECIPE, output)
    assert not output.exists()
    read: list[str] = []
    original = WeightSource.read
    monkeypatch.setattr(
        WeightSource, "read", lambda self, each: read.append(each.name) or original(self, each)
    )
    write.check_layout_output(layout, output, force=False)
    write.write_layout(checkpoint, layout, RECIPE, output)
    assert "img_in.weight" not in read
    assert "final_layer.linear.weight" in read
    assert contents(output) == contents(whole)
    assert sorted(each.name for each in output.parent.iterdir()) == sorted([output.name, "whole"])


def test_killed_just_after_the_rename_it_is_finished(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("kontext.export.bundle.output_file.fsync", lambda path: stop(path, output))
        with pytest.raises(KeyboardInterrupt):
            write.write_layout(checkpoint, BFL, RECIPE, output)
    assert output.exists()
    assert (tmp_path / "x.safetensors.partial" / JOURNAL).exists()
    write.check_layout_output(BFL, output, force=False)
    summary = write.write_layout(checkpoint, BFL, RECIPE, output)
    assert summary.resumed == ["x.safetensors"]
    assert os.listdir(tmp_path) == ["x.safetensors"]
    with pytest.raises(KontextError, match="exists: give --force"):
        write.write_layout(checkpoint, BFL, RECIPE, output)


def stop(path: Path, output: Path) -> None:
    if output.exists():
        raise KeyboardInterrupt


def test_force_replaces_what_this_wrote(
    checkpoint: Checkpoint, chosen: tuple[Layout, Path], tmp_path: Path
) -> None:
    layout, output = chosen
    write.write_layout(checkpoint, layout, RECIPE, output)
    expected = contents(output)
    with pytest.raises(KontextError, match="exists: give --force"):
        write.check_layout_output(layout, output, force=False)
    with pytest.raises(KontextError, match="exists: give --force"):
        write.write_layout(checkpoint, layout, RECIPE, output)
    write.write_layout(checkpoint, layout, choose_recipe(tuple(NETWORKS), 1, "bf16"), output, force=True)
    assert contents(output) != expected
    write.write_layout(checkpoint, layout, RECIPE, output, force=True)
    assert contents(output) == expected
    assert [each.name for each in tmp_path.iterdir()] == [output.name]


def test_a_folder_of_others_is_never_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.json").write_text("mine")
    with pytest.raises(KontextError, match="exists and is not a folder of the layout test"):
        write.write_layout(checkpoint, FOLDER, RECIPE, tmp_path / "x", force=True)
    write.write_layout(checkpoint, FOLDER, RECIPE, tmp_path / "y")
    (tmp_path / "y" / "notes.txt").write_text("mine")
    with pytest.raises(KontextError, match=r"notes.txt is not part of the test folder: move it away"):
        write.write_layout(checkpoint, FOLDER, RECIPE, tmp_path / "y", force=True)


def test_a_folder_of_another_layout_is_not_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write.write_layout(checkpoint, FOLDER, RECIPE, tmp_path / "x")
    other = dataclasses.replace(FOLDER, name="other")
    for check in (
        lambda: write.check_layout_output(other, tmp_path / "x", force=True),
        lambda: write.write_layout(checkpoint, other, RECIPE, tmp_path / "x", force=True),
    ):
        with pytest.raises(KontextError, match=rf"x is a folder of the layout test, as its {MARKER} says"):
            check()
    assert {each.name for each in tmp_path.iterdir()} == {"x"}


def test_too_small_a_disk_is_said_in_words(
    checkpoint: Checkpoint, chosen: tuple[Layout, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, output = chosen
    usage = shutil.disk_usage(output.parent)._replace(free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    said = rf"the {layout.name} (file|folder) needs \d+\.\d MB, {output.parent} has 1\.5 MB free"
    with pytest.raises(KontextError, match=said):
        write.write_layout(checkpoint, layout, RECIPE, output)


def test_the_model_itself_is_never_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = next(path for path in checkpoint.files if path.suffix == ".safetensors")
    before = path.read_bytes()
    with pytest.raises(KontextError, match="is what the model is read from"):
        write.write_layout(checkpoint, BFL, RECIPE, path, force=True)
    assert path.read_bytes() == before


def test_a_folder_is_no_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(KontextError, match="exists and is not a file"):
        write.write_layout(checkpoint, BFL, RECIPE, tmp_path / "x.safetensors", force=True)
    (tmp_path / "x").touch()
    with pytest.raises(KontextError, match="exists and is not a folder"):
        write.write_layout(checkpoint, FOLDER, RECIPE, tmp_path / "x", force=True)


def test_a_folder_lists_its_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import hashlib
    import json

    summary = write.write_layout(checkpoint, FOLDER, RECIPE, tmp_path / "x")
    record = json.loads((tmp_path / "x" / MARKER).read_text())
    found = contents(tmp_path / "x")
    del found[MARKER]
    assert record["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in found.items()
    }
    assert record["layout"] == "test"
    assert summary.sizes.keys() == {*found, MARKER}


def test_a_damaged_weight_discards_what_is_written(
    checkpoint: Checkpoint, chosen: tuple[Layout, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, output = chosen

    def read(self: WeightSource, each: object) -> torch.Tensor:
        raise KontextError("it is damaged")

    monkeypatch.setattr(WeightSource, "read", read)
    with pytest.raises(KontextError, match="it is damaged"):
        write.write_layout(checkpoint, layout, RECIPE, output)
    assert not list(tmp_path.iterdir())
