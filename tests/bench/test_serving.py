"""The closed loop, its table and its plot, with a client that answers from memory."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kontext.bench import cli, local_server, serving
from kontext.errors import KontextError
from kontext.runtime.server_client import Answer, Edit


class Clerk:
    """A client that takes a moment, and counts who is with it at once."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.seeds: list[int] = []
        self.inside = self.most = 0
        self.breaks_at = breaks_at
        self.lock = threading.Lock()

    def edit(self, edit: Edit, progress: Any = None) -> Answer:
        with self.lock:
            self.seeds.append(edit.seed)
            self.inside += 1
            self.most = max(self.most, self.inside)
            if len(self.seeds) == self.breaks_at:
                raise KontextError("no more")
        time.sleep(0.002)
        with self.lock:
            self.inside -= 1
        return Answer(Image.new("RGB", (16, 16)), ())

    def close(self) -> None: ...


def test_every_edit_is_made_once_and_no_more_at_once_than_asked() -> None:
    clerk = Clerk()
    result = serving.measure(clerk, Edit("x", steps=4, size=(64, 64)), [1, 3], requests=7)
    assert sorted(clerk.seeds) == sorted([0, *range(7), *range(7)])
    assert clerk.most <= 3
    for level, callers in zip(result["levels"], (1, 3), strict=True):
        assert (level["concurrency"], level["requests"]) == (callers, 7)
        assert 0 < level["p50"] <= level["p95"] <= level["p99"]
        assert level["per_second"] > 0


def test_each_caller_has_something_to_do() -> None:
    clerk = Clerk()
    result = serving.measure(clerk, Edit("x"), [4], requests=1, warmup=0)
    assert result["levels"][0]["requests"] == 4


def test_a_loss_is_an_error() -> None:
    with pytest.raises(KontextError, match="no more"):
        serving.measure(Clerk(breaks_at=5), Edit("x"), [2], requests=20)


def test_table_footer_and_plot() -> None:
    result = serving.measure(Clerk(), Edit("x", [b"picture"], 4), [1, 2, 4], requests=8)
    (table,) = serving.tables(result)
    assert [row[:2] for row in table.rows] == [["1", "8"], ["2", "8"], ["4", "8"]]
    assert serving.footer(result).startswith("4 steps at the default size, 1 reference;")
    root = ElementTree.fromstring(serving.plot(result))
    lines = [each for each in root.iter() if each.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3, 3, 3]
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= serving.WIDTH
            assert 0 <= y <= serving.HEIGHT


@pytest.mark.parametrize(
    ("value", "top"), [(0.9, 1), (1, 1), (1.1, 2), (3, 4), (30, 40), (81, 100), (0.05, 0.08)]
)
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    assert serving.nice(value) == pytest.approx(top)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_server, "connect", lambda url: Clerk())
    monkeypatch.chdir(tmp_path)
    words = ["serving", "http://127.0.0.1:8000", "--concurrency", "1,2", "--requests", "3", "--prompt", "x"]
    Image.new("RGB", (32, 32)).save("in.png")
    assert cli.main([*words, "-i", "in.png", "--json", "result.json", "--plot", "result.svg"]) == 0
    assert capsys.readouterr().out.startswith("callers  edits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "result.json", "result.svg"]
    assert cli.main([*words[:2], "--concurrency", "0"]) == 2
    assert "--concurrency takes positive whole numbers" in capsys.readouterr().err
