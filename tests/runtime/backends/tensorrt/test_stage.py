"""A stage on a GPU is tested with the backend (test_backend.py); here is what needs none."""

from __future__ import annotations

import pytest

from kontext.runtime.backends.tensorrt.stage import stored_bytes


def test_bytes_of_weights_are_those_of_the_file() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for dtype, count, size in (("INT4", 129, 65), ("FP8", 7, 7), ("BF16", 7, 14), ("FLOAT", 7, 28)):
        assert stored_bytes(count, getattr(trt.DataType, dtype)) == size
