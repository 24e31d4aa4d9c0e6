"""What a caller and the metrics are told of an error."""

from __future__ import annotations

from kontext.errors import ComputationError, KontextError
from kontext.runtime.server.outcomes import explain


def test_only_the_callers_own_errors_are_invalid_arguments() -> None:
    """The codes are those of the server's documentation for its Python backend."""
    logged: list[str] = []
    assert explain(KontextError("steps must be 1 or more"), logged.append) == (
        "invalid",
        "INVALID_ARG",
        "steps must be 1 or more",
    )
    assert explain(ComputationError("the output of vae_decoder is not finite"), logged.append) == (
        "failed",
        "INTERNAL",
        "the output of vae_decoder is not finite",
    )
    assert explain(None, logged.append)[1] == "CANCELLED"
    assert explain(MemoryError(), logged.append)[1] == "UNAVAILABLE"
    assert "secret" not in explain(ZeroDivisionError("secret"), logged.append)[2]
    assert logged == ["ZeroDivisionError: secret"]
