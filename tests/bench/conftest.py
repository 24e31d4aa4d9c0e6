"""The random checkpoint's bundles in every quantized format, over the graphs of its fp32 bundle; and every result that
a test here writes is checked against the published schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from kontext.bench import report

SCHEMA = Path(__file__).resolve().parents[2] / "bench/schema/result.schema.json"


@pytest.fixture(autouse=True)
def checked_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """By jsonschema, an implementation of JSON Schema that is not ours."""
    jsonschema = pytest.importorskip("jsonschema")
    validator, stamped = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())), report.stamped

    def checked(result: dict[str, Any]) -> dict[str, Any]:
        found = stamped(result)
        validator.validate(json.loads(json.dumps(found)))
        return found

    monkeypatch.setattr(report, "stamped", checked)


@pytest.fixture(scope="session")
def bundles(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
) -> dict[str, Path]:
    """Format → bundle. Do not change them: copy them."""
    pytest.importorskip("onnx")
    from kontext.export.cli import main

    folder = tmp_path_factory.mktemp("fidelity")
    with untraced(tiny_bundle):
        for name in ("fp8", "int8", "int4"):
            words = [str(tiny_checkpoint), "-o", str(folder / name), f"--{name}", "--fp32", "--quiet"]
            assert main.main(words) == 0
    return {"fp32": tiny_bundle, "fp8": folder / "fp8", "int8": folder / "int8", "int4": folder / "int4"}
