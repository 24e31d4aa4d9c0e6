"""Lists of jobs as people and programs write them, and what is said of those that are damaged."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from kontext.batch.jobs import columns
from kontext.batch.rows import read_rows
from kontext.errors import KontextError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list[dict[str, Any]]:
    rows = read_rows(path, columns())
    assert not [row.fault for row in rows if row.fault]
    return [row.values for row in rows]


def test_json_lines_are_named_and_those_that_are_wrong_stand_alone(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "a", "steps": 3}',
        "",
        "{",
        "[1]",
        '{"prompt": "b", "promt": "c"}',
        '{"prompt": "b", "prompt": "c"}',
        '{"prompt": "b", "guidance": NaN}',
        '{"prompt": "\\ud800"}',
        '{"prompt": ' + "[" * 100_000,
        '{"prompt": "d", "seed": null, "image": ["x.png", "y.png"]}\r',
    ]
    path = written(tmp_path, "jobs.jsonl", codecs.BOM_UTF8 + "\n".join(lines).encode() + b"\n\xff{}")
    rows = read_rows(path, columns())
    assert [row.number for row in rows] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert rows[0].values == {"prompt": "a", "steps": 3}
    assert rows[8].values == {"prompt": "d", "image": ["x.png", "y.png"]}
    faults = [row.fault for row in rows]
    for fault, word in zip(
        faults,
        ["", "not JSON", "object", "no column 'promt'", "twice", "NaN", "Unicode", "deeply", "", "utf-8"],
        strict=True,
    ):
        assert word in fault
        assert bool(fault) == bool(word)


def test_tables_of_spreadsheets(tmp_path: Path) -> None:
    """With a BOM, quotes, new lines and separators in cells, semicolons, empty lines and cells."""
    expected = [
        {"image": ["a b.png"], "prompt": 'say "hi", twice\nplease', "steps": "4"},
        {"image": ["c.png"], "prompt": "ü"},
    ]
    comma = 'image,prompt,steps\r\na b.png,"say ""hi"", twice\nplease",4\r\n\r\nc.png,ü,\r\n'
    assert values(written(tmp_path, "a.csv", codecs.BOM_UTF8 + comma.encode())) == expected
    semicolon = 'image;prompt;steps\r\na b.png;"say ""hi"", twice\nplease";4\r\nc.png;ü;\r\n'
    assert values(written(tmp_path, "b.csv", semicolon)) == expected
    tabs = 'image\tprompt\tsteps\na b.png\t"say ""hi"", twice\nplease"\t4\nc.png\tü\t\n'
    assert values(written(tmp_path, "c.tsv", tabs)) == expected


def test_several_columns_image_are_several_references(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "image,image,prompt\na.png,b.png,x\na.png,,y\n")
    assert [row["image"] for row in values(path)] == [["a.png", "b.png"], ["a.png"]]


def test_a_row_of_another_length_stands_alone(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, "a.csv", "id,prompt\n1,x\n2\n3,a,b\n4,y\n"), columns())
    assert [(row.number, row.fault) for row in rows] == [
        (2, ""),
        (3, "it has 1 cells, and the header 2"),
        (4, "it has 3 cells, and the header 2"),
        (5, ""),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "prompt,stpes\nx,3\n",
            "there is no column 'stpes': a job may have id, output, image, prompt, steps",
        ),
        ("a.csv", "prompt,prompt\nx,y\n", "has the column prompt twice"),
        ("a.csv", "prompt\nx\n\xfc".encode("latin-1"), "line 3 is not UTF-8"),
        ("a.csv", 'prompt\nx\n"y\n', "line 3 cannot be read as CSV"),
        ("a.csv", "prompt\nx\n", None),
        ("a.csv", "prompt\n", "holds no jobs"),
        ("a.jsonl", "\n\n", "holds no jobs"),
        ("a.json", "[]", r"must be a folder, or end in \.jsonl"),
        ("a.parquet", "PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, content: str | bytes, message: str | None, tmp_path: Path
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = written(tmp_path, name, content)
    if message is None:
        assert read_rows(path, columns())
        return
    with pytest.raises(KontextError, match=message):
        read_rows(path, columns())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.parquet", "a"):
        with pytest.raises(KontextError, match="does not exist"):
            read_rows(tmp_path / name, columns())


def test_parquet_of_other_types(tmp_path: Path) -> None:
    """Whole numbers as floats beside missing ones, as pandas writes them; lists; large strings; dictionaries."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "prompt": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
            "image": pyarrow.array([["x.png", "y.png"], [], None]),
            "steps": pyarrow.array([4.0, None, 3.0]),
            "seed": pyarrow.array([2**40, 1, 0], pyarrow.uint64()),
            "size": pyarrow.array([[64, 96], None, None], pyarrow.list_(pyarrow.int32())),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [
        {"prompt": "a", "image": ["x.png", "y.png"], "steps": 4.0, "seed": 2**40, "size": [64, 96]},
        {"prompt": "b", "image": [], "seed": 1},
        {"prompt": "a", "steps": 3.0, "seed": 0},
    ]
    parquet.write_table(pyarrow.table({"prompt": ["a"], "caption": ["b"]}), tmp_path / "b.parquet")
    with pytest.raises(KontextError, match="there is no column 'caption'"):
        read_rows(tmp_path / "b.parquet", columns())


def test_a_folder_s_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", "c.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert values(tmp_path) == [
        {"image": "a.JPG", "id": "a"},
        {"image": "b.png", "id": "b"},
        {"image": "c.png", "id": "c.png"},
        {"image": "c.webp", "id": "c.webp"},
    ]
