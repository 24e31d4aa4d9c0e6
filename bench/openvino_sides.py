"""OpenVINO as a side of a benchmark: its names, and what it computes in."""

from __future__ import annotations

from ..runtime.backends.options import Compute

OPENVINO: dict[str, Compute] = {"openvino-fp32": "fp32", "openvino-bf16": "bf16"}
