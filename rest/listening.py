"""Listening and leaving: the socket, connections that stay silent, and what a signal does."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import KontextError

HEADER_SECONDS = 20.0
"""In which a connection must send a request's headers."""

BACKLOG = 2048
LEAVE_SECONDS = 10
"""After the edits were told to stop, until they are left."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises KontextError if it cannot."""
    if not 0 <= port <= 65535:
        raise KontextError(f"--port must be from 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise KontextError(f"--host {host} is no address of this machine") from None
    try:
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        # Connections inherit it. asyncio sets it only if this socket names its protocol; without it, the body of an
        # answer waits 40 ms for the caller's acknowledgement of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise KontextError(
                f"{host}:{port} is in use: stop what listens there, or choose another --port"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise KontextError(f"--host {host} is no address of this machine") from None
        raise KontextError(f"cannot listen at {host}:{port}: {error.strerror}") from None


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on how long a connection may take for a request's headers."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.timer = self.loop.call_later(HEADER_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        if self.timer is None and self.at_rest():
            self.timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)
        super().data_received(data)
        if not self.at_rest():
            self.stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        super().connection_lost(exc)

    def at_rest(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM or Ctrl-C takes no more requests, finishes edits for `grace` seconds, and then
    calls `give_up`. A second signal ends the process."""

    def __init__(self, config: uvicorn.Config, grace: float, give_up: Callable[[], object]) -> None:
        super().__init__(config)
        self.grace = grace
        self.give_up = give_up

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            os.write(2, b"\ninterrupted\n")
            os._exit(128 + sig)
        self.should_exit = True
        name = signal.Signals(sig).name
        os.write(2, f"{name}: edits are finished for up to {self.grace:g} s; again to end at once\n".encode())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self.grace, self.give_up)
        await super().shutdown(sockets)
        timer.cancel()


def make_server(app: Any, grace: float, give_up: Callable[[], object]) -> Server:
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(grace) + LEAVE_SECONDS,
    )
    return Server(config, grace, give_up)
