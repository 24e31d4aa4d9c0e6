"""Pictures in JSON: what a reader gets is what was put in."""

from __future__ import annotations

import base64
import json

import pytest

pytest.importorskip("PIL")

from kontext.rest.pictures import Base64, json_bytes


def test_json_with_pictures_is_json() -> None:
    first, second = (base64.b64encode(bytes(range(size))) for size in (255, 7))
    values = {
        "data": [{"b64_json": Base64(first), "seed": 1}, {"b64_json": Base64(second)}],
        "size": "ä\ud800",
    }
    text = {
        "data": [{"b64_json": first.decode(), "seed": 1}, {"b64_json": second.decode()}],
        "size": "ä\ud800",
    }
    assert json.loads(json_bytes(values)) == text
    assert json_bytes({"a": [1, None]}) == b'{"a":[1,null]}'
