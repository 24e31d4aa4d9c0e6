"""The deployer's content filters: a Python file with `input_filter` and `output_filter`, as for NVIDIA Triton."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import KontextError
from ..runtime.pipeline import InputFilter, OutputFilter

NAMES = ("input_filter", "output_filter")


def load_filters(path: Path) -> tuple[InputFilter, OutputFilter]:
    """The two functions of a file, which is run. Raises KontextError if it cannot be, or does not define both."""
    if not path.is_file():
        raise KontextError(f"{path} is not a file: name Python that defines {' and '.join(NAMES)}")
    spec = importlib.util.spec_from_file_location("kontext_filters", path)
    if spec is None or spec.loader is None:
        raise KontextError(f"{path} is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever it does
        raise KontextError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from None
    found = [getattr(module, name, None) for name in NAMES]
    for name, function in zip(NAMES, found, strict=True):
        if not callable(function):
            raise KontextError(f"{path} defines no {name}")
    return found[0], found[1]  # type: ignore[return-value]  # what they take is the deployer's promise
