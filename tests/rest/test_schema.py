"""The description of the API against the server that it describes, by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Served

pytest.importorskip("schemathesis")

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance", "unsupported_method"),
    "negative_data_rejection",
)


def test_the_server_is_what_its_description_says(rest: Served, tmp_path: Path) -> None:
    """Edits among it, of a few steps."""
    schema = rest.send("GET", "/openapi.json")[1]
    assert set(schema["paths"]) >= {"/v1/images/edits", "/v1/images/generations", "/v1/models", "/metrics"}
    for path in ("/v1/images/edits", "/v1/images/generations"):
        for body in schema["paths"][path]["post"]["requestBody"]["content"].values():
            body["schema"]["properties"]["steps"] = {"type": "integer", "minimum": 1, "maximum": 2}
            body["schema"]["properties"]["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(schema))
    words = [sys.executable, "-m", "schemathesis.cli", "run", str(description), "--url", rest.url]
    done = subprocess.run(
        [
            *words,
            "--checks",
            ",".join(CHECKS),
            "--phases",
            "fuzzing",
            "--max-examples",
            "10",
            "--seed",
            "1",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
