"""The socket: where it listens, what is said where it cannot, and that answers leave at once."""

from __future__ import annotations

import socket

import pytest

from kontext.errors import KontextError
from kontext.rest.listening import bind, is_loopback


def test_connections_do_not_wait_for_acknowledgements() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_addresses() -> None:
    for host, loopback in (("localhost", True), ("127.0.0.1", True), ("0.0.0.0", False)):
        with bind(host, 0) as listener:
            assert is_loopback(listener) == loopback
            port = listener.getsockname()[1]
            with pytest.raises(KontextError, match=f"{host}:{port} is in use"):
                bind(host, port)
    for host in ("192.0.2.1", "no such host", "x" * 300):
        with pytest.raises(KontextError, match="is no address of this machine"):
            bind(host, 0)
