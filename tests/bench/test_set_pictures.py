"""Pictures of data sets, where the sets' own scorers look for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.bench.cli import main
from kontext.export.edit_sets.layouts import GEDIT
from kontext.runtime import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of long prompts and aspects


def drawn(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4 + number, 3), np.uint8)
    return Image.fromarray(pixels).resize((64, 64))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_gedit(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "key": ["a", "b", "../../evil"],
        "task_type": ["subject-add"] * 3,
        "instruction": ["add a cat", "\u6dfb\u52a0", "x"],
        "instruction_language": ["en", "cn", "en"],
        "input_image": [drawn(0), drawn(1), drawn(2)],
    }
    data = datasets.Dataset.from_dict(columns).cast_column("input_image", datasets.Image())
    data.save_to_disk(str(tmp_path / "gedit"))
    capsys.readouterr()  # the library's progress
    words = ["set-pictures", str(tiny_bundle), "--data", str(tmp_path / "gedit"), "-o", str(tmp_path / "out")]
    words += ["--steps", "1", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == f"2 edits of {GEDIT} in {tmp_path / 'out'}, 1 skipped\n"
    assert said.err == "skipped: ../../evil: '../../evil' cannot be a file's name\n"
    names = [f"fullset/subject-add/{each}.png" for each in ("en/a", "en/a_SRCIMG", "cn/b", "cn/b_SRCIMG")]
    assert files(tmp_path / "out") == set(names)
    pipe = Pipeline.load(tiny_bundle, device="cpu")
    expected = pipe.edit(drawn(1), "\u6dfb\u52a0", steps=1, seed=1)
    for name, picture in ((names[2], expected), (names[3], drawn(1))):
        with Image.open(tmp_path / "out" / name) as found:
            assert np.array_equal(np.asarray(found), np.asarray(picture))
    (tmp_path / "out" / names[0]).unlink()
    assert main(words) == 0
    assert f"1 edits of {GEDIT} in {tmp_path / 'out'}, 1 were there, 1 skipped" in capsys.readouterr().out


def test_imgedit_and_others(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(0).save(tmp_path / "x.png")
    (tmp_path / "basic_edit.json").write_text(
        json.dumps({"12": {"id": "x.png", "prompt": "add a hat", "edit_type": "add"}})
    )
    entries = [
        {"file_name": "x.png", "prompt": f"p{n}", "key": f"k{n}", "category": "Text Editing"} for n in (1, 2)
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    common = ["--steps", "1", "--device", "cpu", "-o"]
    for data, name, more in (
        (tmp_path, "12.png", []),
        (tmp_path / "list.jsonl", "Text Editing/k2.png", ["-n", "1", "--seed", "3"]),
    ):
        out = tmp_path / f"out-{data.name}"
        assert main(["set-pictures", str(tiny_bundle), "--data", str(data), *common, str(out), *more]) == 0
        assert files(out) == {name}


def test_what_can_go_wrong_is_one_line(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["set-pictures", str(tiny_bundle), "-o", str(tmp_path / "out"), "--data"]
    assert main([*words, str(tmp_path / "gone")]) == 2
    assert "gone does not exist" in capsys.readouterr().err
    assert main([*words, str(tmp_path), "-n", "0"]) == 2
    assert "--count must be at least 1" in capsys.readouterr().err
    drawn(0).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("add a hat")
    for flags in (["--steps", "0"], ["--guidance", "nan"], ["--seed", "-1"], ["--seed", str(1 << 64)]):
        assert main([*words, str(tmp_path), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "file").touch()
    words[3] = str(tmp_path / "file" / "out")
    assert main([*words, str(tmp_path), "--steps", "1", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot make")
    (tmp_path / "x.txt").write_text(" ")
    assert main([*words, str(tmp_path)]) == 2
    assert "has no edits that can be used: x.png: its instruction is empty" in capsys.readouterr().err


def test_two_edits_of_one_name(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(0).save(tmp_path / "x.png")
    entries = [
        {"file_name": "x.png", "prompt": f"p{n}", "key": key} for n, key in enumerate(["k", "k", "a\nb"])
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    words = [
        "set-pictures",
        str(tiny_bundle),
        "--data",
        str(tmp_path / "list.jsonl"),
        "-o",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--steps", "1", "--device", "cpu"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "skipped: k: the set has another edit whose picture has that name",
        "skipped: a b: 'a\\nb' cannot be a file's name",
    ]


def test_a_damaged_row_is_replaced(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A share of a set has as many edits as were asked for, whichever of its rows cannot be used."""
    data, out = tmp_path / "set", tmp_path / "out"
    data.mkdir()
    for name in "abc":
        (data / f"{name}.png").write_bytes(b"no picture")
        (data / f"{name}.txt").write_text("add a hat")
    drawn(0).save(data / "b.png")
    words = ["set-pictures", str(tiny_bundle), "--data", str(data), "-n", "1", "-o", str(out)]
    assert main([*words, "--steps", "1", "--device", "cpu"]) == 0
    assert files(out) == {"b.png"}
    assert "1 edits of" in capsys.readouterr().out
