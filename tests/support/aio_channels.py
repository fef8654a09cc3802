"""Channels of an event loop, for tests."""

import socket

import pytest

from fdpass_c import aio


def make_pair(
    kind: socket.SocketKind = socket.SOCK_STREAM, small: bool = False
) -> tuple[aio.Channel, aio.Channel]:
    """A sender, perhaps with a small buffer, and a receiver."""
    try:
        left, right = socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        pytest.skip(f"no {kind.name}: {error}")
    if small:
        # A packet has to fit into it.
        size = 4608 if kind == socket.SOCK_STREAM else 70_000
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return aio.Channel(left), aio.Channel(right)


async def receive_all(channel: aio.Channel) -> list[bytes]:
    """The payloads of all that comes until the peer closes."""
    received = []
    async for payload, fds in channel:
        fds.close()
        received.append(payload)
    return received


def is_cancelled(error: BaseException | None) -> bool:
    if parts := getattr(error, "exceptions", ()):
        return all(map(is_cancelled, parts))
    return type(error).__name__ in ("CancelledError", "Cancelled")
