"""What a caller and the metrics are told of an error, with a stand-in for the server's Python module."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from kontext.errors import ComputationError, KontextError


def test_only_the_callers_own_errors_are_invalid_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes are those of the server's documentation for its Python backend."""
    stand_in = ModuleType("triton_python_backend_utils")
    stand_in.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1  # type: ignore[attr-defined]
    stand_in.Logger = SimpleNamespace(log_error=lambda _: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
    monkeypatch.delitem(sys.modules, "kontext.runtime.server.stream_model", raising=False)
    from kontext.runtime.server.stream_model import explain

    assert explain(KontextError("steps must be 1 or more")) == (
        "invalid",
        "INVALID_ARG",
        "steps must be 1 or more",
    )
    assert explain(ComputationError("the output of vae_decoder is not finite")) == (
        "failed",
        "INTERNAL",
        "the output of vae_decoder is not finite",
    )
    assert explain(None)[1] == "CANCELLED"
    assert explain(MemoryError())[1] == "UNAVAILABLE"
    assert "secret" not in explain(ZeroDivisionError("secret"))[2]
    monkeypatch.delitem(sys.modules, "kontext.runtime.server.stream_model")
