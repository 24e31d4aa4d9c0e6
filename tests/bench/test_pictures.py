"""The folder of a benchmark's pictures: what is written is what a result names, and names lead nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from kontext.bench.pictures import OUTPUTS, REFERENCE, SOURCE, PictureFolder, read_named
from kontext.errors import KontextError


def test_pictures_are_written_and_named(tmp_path: Path) -> None:
    folder = PictureFolder.prepare(tmp_path / "made" / "pictures")
    red, blue = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    folder.add(0, REFERENCE, red)
    folder.add(1, SOURCE, blue)
    folder.add(1, REFERENCE, blue)
    folder.add(0, SOURCE, None)  # an edit of text alone
    folder.add_output(1, "int4", red)
    found = folder.as_json(tmp_path / "results" / "fidelity.json")
    assert found == {
        "folder": "../made/pictures",
        "edits": [
            {"outputs": {}, "reference": "reference/0000.png"},
            {
                "outputs": {"int4": "outputs/int4/0001.png"},
                "source": "source/0001.png",
                "reference": "reference/0001.png",
            },
        ],
    }
    for name, picture in (("outputs/int4/0001.png", red), ("source/0001.png", blue)):
        assert np.array_equal(read_named(folder.root, name), picture)
    PictureFolder.prepare(folder.root).add_output(0, "int4", red)  # a later run


def test_bundles_may_be_called_anything(tmp_path: Path) -> None:
    folder = PictureFolder.prepare(tmp_path / "pictures")
    colours = {SOURCE: "green", REFERENCE: "blue"}
    for name, colour in colours.items():
        folder.add(0, name, Image.new("RGB", (8, 6), colour))
        folder.add_output(0, name, Image.new("RGB", (8, 6), "red"))
    for name, colour in colours.items():
        assert read_named(folder.root, folder.edits[0][name]).getpixel((0, 0)) == ImageColor.getrgb(colour)
        assert read_named(folder.root, folder.edits[0][OUTPUTS][name]).getpixel((0, 0)) == (255, 0, 0)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(KontextError, match=r"holds letters\.txt, which is no folder of pictures"):
        PictureFolder.prepare(tmp_path)
    with pytest.raises(KontextError, match="cannot make the folder"):
        PictureFolder.prepare(tmp_path / "letters.txt")
    with pytest.raises(KontextError, match=r"is outside the folder of .*: name one in it"):
        PictureFolder.prepare(tmp_path / "pictures", tmp_path / "results" / "x.json")
    PictureFolder.prepare(tmp_path / "results" / "pictures", tmp_path / "results" / "x.json")


@pytest.mark.parametrize("name", ["../out.png", "/etc/passwd", "a/../../b.png", 3, None, "source/none.png"])
def test_names_lead_to_pictures_in_the_folder(tmp_path: Path, name: object) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(KontextError):
        read_named(tmp_path / "folder", name)
