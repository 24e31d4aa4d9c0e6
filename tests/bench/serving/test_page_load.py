"""Pages in a headless Chromium, and why there may be none."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kontext.bench.serving import page_load


def test_a_page_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("selenium")
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("Chromium is not there: Debian's packages chromium and chromium-driver")
    (tmp_path / "index.html").write_text("<link rel=icon href=data:,><script src=page.js></script>")
    (tmp_path / "page.js").write_text("let x = 1;")
    monkeypatch.setattr(page_load, "PAGES", 2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = page_load.measure_page(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
    assert (found["requests"], found["loads"]) == (2, 2)
    assert 0 < found["seconds"]["q1"] <= found["seconds"]["median"] <= found["seconds"]["q3"]


def test_without_a_browser_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("selenium")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    reason = "Chromium is not there: Debian's packages chromium and chromium-driver"
    assert page_load.measure_page("http://127.0.0.1:9") == {"skipped": reason}
