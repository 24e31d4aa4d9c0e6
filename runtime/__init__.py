"""The lean runtime: bundle reader, tokenizers, sampler, ONNX Runtime backend, pipeline and `kontext-edit`.

`Pipeline` is imported when it is first asked for: `kontext-edit --help` and the exporter, which needs only the
manifest's constants, do not wait for numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> object:
    if name == "Pipeline":
        from .pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
