"""A Channel with a socket or a Channel at its other end."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fdpass_c import Channel, Listener


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


@contextmanager
def full_backlog(path: Path) -> Iterator[tuple[Listener, int]]:
    """A listener that has no place, and how many wait."""
    with Listener(path, backlog=0) as listener, ExitStack() as clients:
        waiting = 0
        with suppress(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
                waiting += 1
        yield listener, waiting
