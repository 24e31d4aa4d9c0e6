"""Published data sets of edits in their own layouts, written by the library that their publishers use."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.errors import KontextError
from kontext.export.edit_sets.layouts import read_edit_set
from kontext.export.edit_sets.samples import Samples, open_source


def drawn(number: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32 + number, len(mode)), np.uint8)
    return Image.fromarray(pixels, mode)


def seen(samples: Samples) -> list[tuple[str, str, str, str]]:
    return [(each.key, each.prompt, each.category, each.language) for each in samples.samples]


# -- KontextBench: an image folder --


def test_kontextbench(tmp_path: Path) -> None:
    folder = tmp_path / "kontext-bench"
    (folder / "test" / "images").mkdir(parents=True)
    lines = []
    for number in range(4):
        drawn(number).save(folder / "test" / "images" / f"{number:04}.jpg", quality=95)
        lines.append(
            {
                "file_name": f"images/{number:04}.jpg",
                "key": f"k{number}",
                "category": "Text Editing" if number % 2 else "Instruction Editing - Local",
                "instruction": f"replace {number} \N{SNOWMAN}",
                "another": None,
            }
        )
    (folder / "test" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    samples = read_edit_set(folder)
    assert samples.name == "kontext-bench"
    assert seen(samples)[1] == ("k1", "replace 1 \N{SNOWMAN}", "Text Editing", "")
    assert samples.categories() == ["Instruction Editing - Local", "Text Editing"]
    picture = samples.samples[3].picture()
    assert picture is not None
    assert picture.size == (35, 24)


def test_the_hub_s_library_reads_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for number in range(2):
        drawn(number).save(tmp_path / f"{number}.png")
    lines = [
        {"file_name": f"{n}.png", "key": str(n), "category": "c", "instruction": f"p{n}"} for n in range(2)
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), split="train", cache_dir=tmp_path / "c"
    )
    ours = read_edit_set(tmp_path).samples
    assert [row["instruction"] for row in theirs] == [sample.prompt for sample in ours]
    for row, sample in zip(theirs, ours, strict=True):
        picture = sample.picture()
        assert picture is not None
        assert np.array_equal(np.asarray(row["image"]), np.asarray(picture))


# -- tables --


def image_feature(datasets: Any, names: tuple[str, ...], columns: dict[str, list[Any]]) -> Any:
    data = datasets.Dataset.from_dict(columns)
    for name in names:
        data = data.cast_column(name, datasets.Image())
    return data


def gedit(datasets: Any) -> Any:
    tasks = ["background_change", "subject-add", "subject-add"]
    columns = {
        "key": ["a", "b", "b2"],
        "task_type": tasks,
        "instruction": ["make it night", "add a cat", "\u6dfb\u52a0\u4e00\u53ea\u732b"],
        "instruction_language": ["en", "en", "cn"],
        "input_image": [drawn(9)] * 3,
        "input_image_raw": [drawn(n) for n in range(3)],
        "Intersection_exist": [True, True, False],
    }
    return image_feature(datasets, ("input_image", "input_image_raw"), columns)


def to_parquet(data: Any, folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")


def to_disk(data: Any, folder: Path) -> None:
    data.save_to_disk(str(folder))


def to_disk_in_splits(data: Any, folder: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": data}).save_to_disk(str(folder))


@pytest.mark.parametrize("write", [to_parquet, to_disk, to_disk_in_splits])
def test_gedit(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    datasets = pytest.importorskip("datasets")
    write(gedit(datasets), tmp_path / "gedit")
    samples = read_edit_set(tmp_path / "gedit")
    assert samples.name == "GEdit-Bench"
    assert seen(samples) == [
        ("a", "make it night", "background_change", "en"),
        ("b", "add a cat", "subject-add", "en"),
    ]
    for number, sample in enumerate(samples.samples):
        assert sample.source is not None
        assert np.array_equal(np.asarray(open_source(sample.source)), np.asarray(drawn(number)))
    assert len(read_edit_set(tmp_path / "gedit", "all").samples) == 3
    (chinese,) = read_edit_set(tmp_path / "gedit", "cn").samples
    assert chinese.prompt == "\u6dfb\u52a0\u4e00\u53ea\u732b"
    with pytest.raises(KontextError, match="has no instructions in 'fr': it has en, cn"):
        read_edit_set(tmp_path / "gedit", "fr")


def test_magicbrush_has_masks_and_targets_and_its_dev_split_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "img_id": [7, 7],
        "turn_index": [1, 2],
        "source_img": [drawn(0), drawn(1)],
        "mask_img": [drawn(0, "RGBA"), drawn(1, "RGBA")],
        "instruction": ["put a hat on", "make it red"],
        "target_img": [drawn(1), drawn(2)],
    }
    data = image_feature(datasets, ("source_img", "mask_img", "target_img"), columns)
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "dev-00000-of-00001.parquet")
    data.select([0]).to_parquet(tmp_path / "data" / "train-00000-of-00051.parquet")
    samples = read_edit_set(tmp_path)
    assert samples.name == "MagicBrush"
    assert seen(samples) == [("7-1", "put a hat on", "", ""), ("7-2", "make it red", "", "")]
    mask, target = samples.samples[1].mask, samples.samples[1].target
    assert mask is not None
    assert target is not None
    assert np.array_equal(np.asarray(open_source(mask)), np.asarray(drawn(1, "RGBA")))
    assert np.array_equal(np.asarray(open_source(target)), np.asarray(drawn(2)))


def test_emu_edit(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "instruction": ["add a boat"],
        "image": [drawn(0)],
        "task": ["local"],
        "split": ["test"],
        "idx": [3],
        "hash": ["abc"],
        "input_caption": ["a lake"],
        "output_caption": ["a lake with a boat"],
    }
    image_feature(datasets, ("image",), columns).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    samples = read_edit_set(tmp_path / "test-00000-of-00001.parquet")
    assert samples.name == "Emu Edit"
    assert seen(samples) == [("abc", "add a boat", "local", "")]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = gedit(datasets).to_dict()
    data["instruction"][0] = "  "
    data["input_image_raw"][1] = {"bytes": b"no picture", "path": "x.png"}
    to_parquet(image_feature(datasets, ("input_image", "input_image_raw"), data), tmp_path)
    samples = read_edit_set(tmp_path, "all").checked()
    assert [sample.key for sample in samples.samples] == ["b2"]
    assert samples.skipped[0] == "train-00000-of-00001.parquet, row 1: its instruction is empty"
    assert samples.skipped[1].startswith(
        "b: input_image_raw in row 2 of train-00000-of-00001.parquet is not a PNG"
    )


def test_a_table_of_other_things(tmp_path: Path) -> None:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(KontextError, match="is not a table of edits: it has the columns a"):
        read_edit_set(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(KontextError, match=r"x\.parquet cannot be read"):
        read_edit_set(tmp_path)


def test_damaged_and_odd_tables(tmp_path: Path) -> None:
    """Offsets outside of the file ended the process with SIGBUS."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    good = pyarrow.table({"image": ["a.png"], "prompt": ["x"]})

    def arrow(name: str, table: Any) -> Path:
        with pyarrow.ipc.new_file(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
        return tmp_path / name

    not_utf8 = pyarrow.StringArray.from_buffers(
        1, pyarrow.array([0, 1], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"\xff")
    )
    twice = pyarrow.Table.from_arrays(
        [good["image"], good["prompt"], good["prompt"]], ["image", "prompt", "prompt"]
    )
    bad = [
        arrow("beyond.arrow", good.set_column(1, "prompt", pyarrow.array(["x" * 1234]))),
        arrow("utf8.arrow", good.set_column(1, "prompt", not_utf8)),
        arrow("twice.arrow", twice),
    ]
    data = bad[0].read_bytes()
    before, offsets, after = data.rpartition(struct.pack("<ii", 0, 1234))  # the header has the length too
    assert offsets
    bad[0].write_bytes(before + struct.pack("<ii", 0, 1 << 30) + after)
    parquet.write_table(good.set_column(1, "prompt", not_utf8), tmp_path / "utf8.parquet")
    parquet.write_table(
        good.append_column("key", pyarrow.array([1 << 62], pyarrow.duration("s"))), tmp_path / "key.PARQUET"
    )
    for path in [*bad, tmp_path / "utf8.parquet", tmp_path / "key.PARQUET"]:
        with pytest.raises(KontextError, match=r"cannot be read|two columns of one name"):
            read_edit_set(path)


@pytest.mark.parametrize("prompt", [b"make it red", ["a"], {"a": 1}, 1])
def test_instructions_are_text(tmp_path: Path, prompt: object) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pyarrow.table({"image": ["a.png"], "prompt": pyarrow.array([prompt])}), tmp_path / "x.parquet"
    )
    found = read_edit_set(tmp_path / "x.parquet")
    assert found.samples == []
    assert found.skipped == ["x.parquet, row 1: its prompt is no text"]


# -- ImgEdit --


@pytest.mark.parametrize("place", ["basic_edit.json", "eval_prompts/basic_edit.json"])
def test_imgedit(tmp_path: Path, place: str) -> None:
    (tmp_path / "singleturn" / "animal").mkdir(parents=True)
    drawn(0).save(tmp_path / "singleturn" / "animal" / "000342021.jpg")
    entries = {
        "1082": {"id": "animal/000342021.jpg", "prompt": "add a hat", "edit_type": "add"},
        "2": {"id": "animal/gone.jpg", "prompt": "x", "edit_type": "remove"},
        "3": {"id": 3, "prompt": "x"},
        "4": [],
    }
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(json.dumps(entries))
    for path in (tmp_path, tmp_path / place):
        samples = read_edit_set(path)
        assert seen(samples) == [("1082", "add a hat", "add", "")]
        assert samples.samples[0].picture() is not None
        assert [line.partition(":")[0] for line in samples.skipped] == [
            f"basic_edit.json, {key}" for key in "234"
        ]


# -- a user's own --


def test_lists_of_one_s_own(tmp_path: Path) -> None:
    drawn(0).save(tmp_path / "a.png")
    lines = [
        json.dumps({"image": "a.png", "prompt": "one"}),
        json.dumps({"image": str(tmp_path / "a.png"), "text": "two", "key": 5}),
        "[1]",
        '{"image": "a.png"}',
        "{",
        '{"image": "gone.png", "prompt": "x"}',
        '{"image": "a.png", "prompt": " "}',
        json.dumps({"image": "x" * 300, "prompt": "x"}),
        json.dumps({"image": "a.png", "prompt": "three\u2028lines", "key": None}, ensure_ascii=False),
    ]
    (tmp_path / "edits.jsonl").write_text("\ufeff" + "\n".join(lines))
    samples = read_edit_set(tmp_path / "edits.jsonl")
    assert seen(samples) == [("a", "one", "", ""), ("5", "two", "", ""), ("a", "three\u2028lines", "", "")]
    assert [line.partition(":")[0] for line in samples.skipped] == [
        f"edits.jsonl, line {number}" for number in (3, 4, 5, 6, 7, 8)
    ]


def test_tables_of_one_s_own(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"input_image": [drawn(0)], "prompt": ["one"], "category": ["c"]}
    image_feature(datasets, ("input_image",), columns).to_parquet(tmp_path / "own.parquet")
    assert seen(read_edit_set(tmp_path)) == [("own-0", "one", "c", "")]


def test_what_holds_no_edits(tmp_path: Path) -> None:
    drawn(0).save(tmp_path / "a.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (tmp_path / "a.png", empty):
        with pytest.raises(KontextError, match="holds no edits: give a folder with"):
            read_edit_set(path)
    with pytest.raises(KontextError, match="does not exist"):
        read_edit_set(tmp_path / "gone")
    (tmp_path / "basic_edit.json").write_text("[]")
    with pytest.raises(KontextError, match="is not an object of edits"):
        read_edit_set(tmp_path)
    (tmp_path / "basic_edit.json").write_text("{")
    with pytest.raises(KontextError, match="is not JSON"):
        read_edit_set(tmp_path)
    (tmp_path / "x.jsonl").write_bytes(b"\xff")
    with pytest.raises(KontextError, match="is not UTF-8"):
        read_edit_set(tmp_path / "x.jsonl")
