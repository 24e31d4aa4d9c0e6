"""What every request passes before the application: keys, hosts, sizes, patience; and what is counted and logged.

An ASGI middleware. A slow or endless body ends here, whatever reads it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from .faults import RETRY_AFTER, Fault
from .keys import Keys
from .metrics import Metrics

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = ("/", "/page.css", "/page.js", "/icon.svg", "/favicon.ico", "/openapi.json")
"""Paths that need no key: the page, which asks for it, and the description of the API."""
OPEN_FOLDERS = ("/health/", "/pictures/")

SILENCE_SECONDS = 30.0
"""Of a caller who sends a body, and of one who takes an answer."""
BODY_SECONDS = 300.0
"""For a whole body: 64 MB in that time are 1.7 Mbit/s."""
DRAIN_SECONDS = 3.0
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
LOG = logging.getLogger("kontext.serve")


@dataclass
class Bodies:
    """Bytes of bodies: most of one, and of all requests that are not answered."""

    most_of_one: int
    most_together: int
    held: int = field(default=0, init=False)


class Guard:
    """The middleware.

    Args:
        app: what it stands before.
        keys: that callers need; None: anyone may call.
        hosts: names that a request's Host may have; None: any. Keeps other web sites, whose names an attacker can have
            resolved to this machine, from a server without keys.
        bodies: limits.
        metrics: count responses.
    """

    def __init__(
        self,
        app: Application,
        *,
        keys: Keys | None,
        hosts: frozenset[str] | None,
        bodies: Bodies,
        metrics: Metrics,
    ) -> None:
        self.app = app
        self.keys = keys
        self.hosts = hosts
        self.bodies = bodies
        self.metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, identity = time.monotonic(), 0, secrets.token_hex(8)
        body = Body(receive, self.bodies)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await body.drain()
                message["headers"] = [
                    *message.get("headers", ()),
                    *HEADERS,
                    (b"x-request-id", identity.encode()),
                    *([] if body.complete else [(b"connection", b"close")]),
                ]
            try:
                await asyncio.wait_for(send(message), SILENCE_SECONDS)
            except asyncio.TimeoutError:
                raise OSError("the caller does not take its answer") from None

        try:
            self.check(scope)
            body.check_length(scope)
            await self.app(scope, body.receive, answer)
        except Fault as fault:
            await respond(answer, fault)
        except OSError as error:
            LOG.info("id=%s %s", identity, error)
        finally:
            body.release()
            route = getattr(scope.get("route"), "path", "-")
            self.metrics.responses.labels(route, str(status)).inc()
            if scope["method"] == "POST":
                LOG.info(
                    "id=%s %s %s status=%d seconds=%.3f",
                    identity,
                    scope["method"],
                    route,
                    status,
                    time.monotonic() - began,
                )

    def check(self, scope: MutableMapping[str, Any]) -> None:
        """Raises Fault for a request that may not pass."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.hosts is not None and hostname(host) not in self.hosts:
            raise Fault(
                403,
                "this server has no API keys, and answers under its own name only: call it as localhost",
                code="wrong_host",
            )
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
            raise Fault(403, "pages of other sites may not call this server", code="wrong_origin")
        path = scope["path"]
        if self.keys is None or path in OPEN or path.startswith(OPEN_FOLDERS):
            return
        if not self.keys.allow(headers.get("authorization", "")):
            raise Fault(
                401,
                "a valid API key is needed: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Body:
    """The body of one request as it comes in; it counts until the request is answered."""

    def __init__(self, receive: Receive, bodies: Bodies) -> None:
        self.whole = receive
        self.bodies = bodies
        self.bytes = 0
        self.complete = False
        self.deadline = time.monotonic() + BODY_SECONDS

    async def receive(self) -> Message:
        """The next message. Raises Fault if the body is too large or too slow."""
        if self.complete:
            return await self.whole()  # which tells when the caller leaves
        left = min(SILENCE_SECONDS, self.deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self.whole(), max(left, 0))
        except asyncio.TimeoutError:
            raise Fault(408, "the body came too slowly", code="timeout") from None
        if message["type"] == "http.request":
            self.complete = not message.get("more_body", False)
            self.bytes += len(message.get("body", b""))
            self.bodies.held += len(message.get("body", b""))
            if self.bytes > self.bodies.most_of_one:
                raise self.too_large()
            if self.bodies.held > self.bodies.most_together:
                raise Fault(
                    429,
                    "too many pictures wait already: try again later",
                    code="queue_full",
                    headers=RETRY_AFTER,
                )
        else:
            self.complete = True
        return message

    def check_length(self, scope: MutableMapping[str, Any]) -> None:
        """Raises Fault if the request announces a body that is too large."""
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self.bodies.most_of_one:
                raise self.too_large()

    def too_large(self) -> Fault:
        return Fault(
            413,
            f"the body has more than {self.bodies.most_of_one / 1e6:.0f} MB: send smaller pictures",
            code="too_large",
        )

    async def drain(self) -> None:
        """Reads what is left of a body that was refused, for a moment: callers who still send would miss the answer."""
        deadline, most = time.monotonic() + DRAIN_SECONDS, self.bodies.most_of_one
        while not self.complete and most > 0 and (left := deadline - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self.whole(), left)
            except asyncio.TimeoutError:
                return
            most -= len(message.get("body", b""))
            self.complete = message["type"] != "http.request" or not message.get("more_body", False)

    def release(self) -> None:
        self.bodies.held -= self.bytes


async def respond(send: Send, fault: Fault) -> None:
    """Sends a fault."""
    content = json.dumps(fault.body()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **{name.lower(): value for name, value in fault.headers.items()},
    }
    await send(
        {
            "type": "http.response.start",
            "status": fault.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": content})
