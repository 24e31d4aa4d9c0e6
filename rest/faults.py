"""Errors as OpenAI's API answers them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from ..errors import KontextError, one_line
from ..runtime.server import contract
from ..runtime.server.outcomes import Full, explain

RETRY_AFTER = {"Retry-After": "5"}
"""Seconds after which a caller who was sent away may try again; a small edit takes about as long."""

LEFT = 499
"""The status of those who left, as nginx counts them; nobody reads it."""

TENSORS = {tensor.name: tensor.name.lower() for tensor in contract.INPUTS} | {contract.IMAGES.name: "image"}
"""What messages of the edit call an input → the field of the form that it came from."""

SPOKEN = re.compile(rf"\b(?:{'|'.join(TENSORS)})\b")
LOG = logging.getLogger("kontext.serve")


class Fault(Exception):
    """What a caller is told of an error.

    Args:
        status: of the response.
        message: one line.
        param: the field that is wrong.
        code: the error in one word, for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """One of OpenAI's types of errors."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class Unavailable(KontextError):
    """What runs the edits cannot be reached, or shuts down."""


def outcome_of(error: BaseException | None) -> str:
    """One of `outcomes.OUTCOMES`."""
    return "failed" if isinstance(error, Unavailable) else explain(error, lambda _: None)[0]


def fault_of(error: BaseException | None) -> Fault:
    """The fault of an edit's error; None: it was cancelled. Details of internal errors go to the log."""
    if isinstance(error, Unavailable):
        return Fault(503, str(error), code="unavailable", headers=RETRY_AFTER)
    outcome, code, message = explain(error, LOG.error)
    named = SPOKEN.search(message)
    message = SPOKEN.sub(lambda found: TENSORS[found[0]], message)
    param = None if named is None else TENSORS[named[0]]
    if isinstance(error, Full):
        return Fault(429, message, code="queue_full", headers=RETRY_AFTER)
    if outcome == "invalid":
        return Fault(400, message, param=param, code="invalid_value")
    if outcome == "refused":
        return Fault(400, message, code="content_policy_violation")
    if outcome == "cancelled":
        return Fault(LEFT, message, code="cancelled")
    if outcome == "late":
        return Fault(504, message, code="timeout")
    if code == "UNAVAILABLE":
        return Fault(503, message, code="unavailable", headers=RETRY_AFTER)
    return Fault(500, message, code="internal_error")
