"""kontext-serve beside a real NVIDIA Triton Inference Server, and before it: one short run of the whole measurement."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

for _library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(_library)

from PIL import Image  # noqa: E402  # after the skips

from kontext.bench.serving import page_load, rest  # noqa: E402
from kontext.bench.serving.benchmark import make_edit  # noqa: E402
from kontext.bench.serving.environment import is_ready  # noqa: E402
from kontext.errors import KontextError  # noqa: E402
from kontext.runtime.server_client import Answer, Edit  # noqa: E402

from .test_load import CountingClient  # noqa: E402


class OtherPicture(CountingClient):
    def edit(self, edit: Edit, progress: object = None) -> Answer:
        return Answer(Image.new("RGB", (16, 16), "red"), ())


def test_the_whole_measurement(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_ready():
        pytest.skip("no server is installed: `make server` makes build/server")
    monkeypatch.setattr(page_load, "PAGES", 1)
    # Of a copy: the repository links to the bundle's files, and onnx refuses to read files with several links.
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    result = rest.measure_rest(bundle, make_edit(None, None, 2, None), [1, 2], requests=2, repeat=1)
    servers = [rest.REST, rest.TRITON, rest.BEFORE]
    assert list(result["levels"]) == servers
    added, parts, load = rest.tables(result)
    assert len(added.rows) == 5
    assert len(parts.rows) == 9
    assert [row[0] for row in load.rows] == [f"{name}, {callers}" for callers in (1, 2) for name in servers]
    footer = rest.footer(result)
    assert "over 1 rounds in turn" in footer
    assert ("headless Chromium" if "seconds" in result["page"] else "was not measured") in footer
    assert "The page's load was not measured: no browser" in rest.footer(
        {**result, "page": {"skipped": "no browser"}}
    )


def test_the_same_edit_in_turn() -> None:
    sides = {"a": CountingClient(), "b": CountingClient()}
    found = rest.in_turn(dict(sides), Edit("x", seed=5), 3, False)
    assert [len(each.seeds) for each in sides.values()] == [6, 6]
    assert set(found["seconds"]) == {"a", "b"}
    assert found["adds"]["q1"] <= found["adds"]["median"] <= found["adds"]["q3"]
    with pytest.raises(KontextError, match="the pictures of both servers are not the same"):
        rest.in_turn({"a": CountingClient(), "b": OtherPicture()}, Edit("x"), 1, False)
