"""Metadata of an edit, for tests that change some of it."""

from __future__ import annotations

from typing import Any

from kontext.runtime.metadata import FORMAT

GIVEN: dict[str, Any] = {
    "format": FORMAT,
    "prompt": "make it blue",
    "references": [{"sha256": "0" * 64, "size": [176, 96]}],
    "seed": 3,
    "size": [96, 64],
    "steps": 2,
    "guidance": 2.5,
    "reference_method": "index",
    "reference_size": "auto",
    "bundle": {"name": "tiny", "digest": "sha256:0", "loras": []},
    "running": {"backend": "onnxruntime", "device": "cpu", "options": {}, "loras": []},
    "version": "0.1.0",
}
