"""The closed loop, its table and the command, with a client that answers from memory."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from kontext.bench import cli
from kontext.bench.serving import benchmark as serving
from kontext.bench.serving import local_server
from kontext.errors import KontextError
from kontext.runtime.server_client import Answer, Edit


class CountingClient:
    """Takes a moment per edit, and counts concurrent callers."""

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


def test_every_edit_is_sent_once_by_no_more_callers_than_requested() -> None:
    client = CountingClient()
    result = serving.measure_load(client, Edit("x", steps=4, size=(64, 64)), [1, 3], requests=7)
    assert sorted(client.seeds) == list(range(15))
    assert client.most <= 3
    for level, callers in zip(result["levels"], (1, 3), strict=True):
        assert (level["concurrency"], level["requests"]) == (callers, 7)
        assert 0 < level["p50"] <= level["p95"] <= level["p99"]
        assert level["per_second"] > 0


def test_no_two_edits_share_a_prompt_or_a_picture_unless_asked() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "grey").save(file, "PNG")
    for same in (False, True):
        sent: list[Edit] = []
        client = SimpleNamespace(edit=sent.append)
        serving.measure_load(client, Edit("x", [file.getvalue()]), [2], requests=5, same=same)  # type: ignore[arg-type]
        for values in ([edit.prompt for edit in sent], [edit.images[0] for edit in sent]):
            assert len(set(values)) == (1 if same else 6)
        assert sorted(edit.seed for edit in sent) == list(range(6))


def test_each_caller_has_something_to_do() -> None:
    client = CountingClient()
    result = serving.measure_load(client, Edit("x"), [4], requests=1, warmup=0)
    assert result["levels"][0]["requests"] == 4


def test_a_loss_is_an_error() -> None:
    with pytest.raises(KontextError, match="no more"):
        serving.measure_load(CountingClient(breaks_at=5), Edit("x"), [2], requests=20)


def test_table_and_footer() -> None:
    result = serving.measure_load(
        CountingClient(), Edit("x", [b"picture"], 4), [1, 2, 4], requests=8, same=True
    )
    (table,) = serving.tables(result)
    assert [row[:2] for row in table.rows] == [["1", "8"], ["2", "8"], ["4", "8"]]
    assert serving.footer(result).startswith("4 steps at the default size, 1 reference; the same prompt")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_server, "connect", lambda url: CountingClient())
    monkeypatch.chdir(tmp_path)
    words = ["serving", "http://127.0.0.1:8000", "--concurrency", "1,2", "--requests", "3", "--prompt", "x"]
    Image.new("RGB", (32, 32)).save("in.png")
    assert cli.main([*words, "-i", "in.png", "--json", "result.json", "--plot", "result.svg"]) == 0
    assert capsys.readouterr().out.startswith("callers  edits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "result.json", "result.svg"]
    assert cli.main([*words[:2], "--concurrency", "0"]) == 2
    assert "--concurrency takes positive whole numbers" in capsys.readouterr().err
