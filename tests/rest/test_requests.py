"""Forms: large files come through as they are, and without the disk."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any

import pytest

for _library in ("fastapi", "python_multipart"):
    pytest.importorskip(_library)

from starlette.requests import Request  # noqa: E402  # after the skips

from kontext.rest.faults import Fault  # noqa: E402
from kontext.rest.requests import read_form  # noqa: E402
from kontext.runtime.server.contract import Limits  # noqa: E402

from .conftest import form  # noqa: E402


def read(body: bytes, header: dict[str, str]) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """As the server reads a body that comes in pieces."""
    pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    headers = [(b"content-type", header["Content-Type"].encode())]
    return asyncio.run(read_form(Request({"type": "http", "headers": headers}, receive), Limits()))


def test_large_files_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tempfile.SpooledTemporaryFile, "rollover", lambda _: pytest.fail("it went to the disk")
    )
    files = [os.urandom(3 << 20), b"", os.urandom(5)]
    body, header = form({"prompt": "x"}, [("image[]", each) for each in files])
    assert read(body, header) == ({"prompt": "x"}, {"image[]": files})


def test_what_is_no_form() -> None:
    body, header = form({"prompt": "x"}, [("image", b"y")])
    for wrong, words in (
        ((b"x" * 100, header), "the form cannot be read: Invalid multipart data"),
        ((body, {"Content-Type": "multipart/form-data"}), "the form cannot be read: Missing boundary"),
        (form({"prompt": "x" * (65 << 10)}), "the form cannot be read: Part exceeded"),
        (form({str(number): "x" for number in range(65)}), "the form cannot be read: Too many fields"),
        (form({}, [("image", b"x")] * 30), "the form cannot be read: Too many files"),
    ):
        with pytest.raises(Fault, match=words) as fault:
            read(*wrong)
        assert (fault.value.status, fault.value.code) == (400, "invalid_form")
