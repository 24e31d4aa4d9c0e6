"""The lean runtime: bundle reader, tokenizers, sampler, backends, pipeline and `kontext-edit`.

`Pipeline` and the backends' options are imported when they are first used: `kontext-edit --help` and the exporter,
which needs only the manifest's constants, do not wait for numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backends.options import OnnxRuntimeOptions, OpenVINOOptions, TensorRTOptions, TorchOptions
    from .pipeline import Pipeline

__all__ = ["OnnxRuntimeOptions", "OpenVINOOptions", "Pipeline", "TensorRTOptions", "TorchOptions"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(".pipeline" if name == "Pipeline" else ".backends.options", __name__)
    return getattr(module, name)
