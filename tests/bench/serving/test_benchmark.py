"""The table and the command, with a client that answers from memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kontext.bench import cli
from kontext.bench.serving import benchmark as serving
from kontext.bench.serving import local_server
from kontext.bench.serving.load import measure_load
from kontext.runtime.server_client import Edit

from .test_load import CountingClient


def test_table_and_footer() -> None:
    result = measure_load(CountingClient(), Edit("x", [b"picture"], 4), [1, 2, 4], requests=8, same=True)
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


def test_rest_needs_a_bundle_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serving", "http://127.0.0.1:8000", "--rest"]) == 2
    assert "--rest starts its servers itself: name a BUNDLE instead of a URL" in capsys.readouterr().err
    for words in (["--same"], ["--plot", "x.svg"]):
        assert cli.main(["serving", "bundle", "--rest", *words]) == 2
        assert f"{words[0]} does not go with --rest" in capsys.readouterr().err
