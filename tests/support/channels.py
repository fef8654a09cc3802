"""A Channel with a socket or a Channel at its other end."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fdpass_c import Channel


@contextmanager
def raw_pair(
    kind: socket.SocketKind = socket.SOCK_STREAM, **options: Any
) -> Iterator[tuple[socket.socket, Channel]]:
    """A socket, and the Channel at its other end."""
    try:
        left, right = socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        pytest.skip(f"no {kind.name}: {error}")
    with left, Channel(right, **options) as channel:
        yield left, channel


@contextmanager
def channels(
    kind: socket.SocketKind = socket.SOCK_STREAM,
    buffer: int | None = None,
    *,
    make: Any = Channel,
    **options: Any,
) -> Iterator[tuple[Channel, Channel]]:
    """A sender, perhaps with a small buffer, and a receiver with the options."""
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    if buffer is not None:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    with make(left) as sender, make(right, **options) as receiver:
        yield sender, receiver
