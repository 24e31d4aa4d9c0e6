"""The demo writes its pictures and says where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from kontext.bench import demo

pytestmark = [
    # The random model's small tokenizer splits a prompt into more tokens than fit.
    pytest.mark.filterwarnings("ignore:the prompt is longer:UserWarning"),
]


def test_demo_writes_its_pictures_and_says_where(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    message = demo.make_demo(tiny_bundle, tmp_path / "demo", steps=1, seed=0)
    sheet = tmp_path / "demo" / "contact-sheet.png"
    assert str(sheet) in message
    assert "kontext-edit" in message
    report = tmp_path / "demo" / "report.html"
    assert str(report) in message
    assert report.read_text().count("<article") == 12
    assert demo.make_demo(tiny_bundle, tmp_path / "demo", steps=1, seed=0)  # again, in the same place
    assert np.asarray(PIL.Image.open(sheet)).std() > 10
    assert PIL.Image.open(tmp_path / "demo" / "edit-00.png").size == (128, 128)
    width, height = PIL.Image.open(tmp_path / "demo" / "edit-11.png").size
    assert width < height  # the photograph is upright
