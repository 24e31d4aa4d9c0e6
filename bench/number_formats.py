"""What a bundle stores its weights in and computes in, the same in every result, and how footers say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runtime.bundle import Bundle


def formats_of(bundle: Bundle) -> dict[str, str]:
    """For a result: `precision` is the format of the weights, `compute` what the networks compute in."""
    precision = bundle.manifest["precision"]
    return {"precision": precision["weights"], "compute": precision["compute"]}


def formats_line(result: Mapping[str, Any]) -> str:
    """As "fp32", or "fp8 weights, computing in fp32"; older results have no `compute`."""
    weights, compute = result["precision"], result.get("compute")
    return str(weights) if compute in (None, weights) else f"{weights} weights, computing in {compute}"
