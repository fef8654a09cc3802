"""The socket that a handler gets, and closing it without losing what it has sent."""

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fdpass_c._native import lib
from fdpass_c.descriptors import Descriptors, initialize
from fdpass_c.errors import PeerClosedError
from fdpass_c.unix import read_name

MASTER_GONE = (PeerClosedError, ConnectionResetError)
"""The master has closed its side of the channel, or died; ConnectionResetError with something
unread."""

_MAX_READ = 65536

_find_unread = lib.fdp_try_find_unread
_end_sending = lib.fdp_try_end_sending

# Compared as ints: an enum's comparison takes three times as long.
_AF_INET, _AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)
# After the family, which is two bytes, or a length and one byte, on every system.
_ADDRESS_AT = lib.FDP_ORIGIN_SIZE + 2
_SCOPE_AT = _ADDRESS_AT + 22
_INET = struct.Struct("!H4s")
_INET6 = struct.Struct("!HI16s")
_SCOPE = struct.Struct("=I")


class Kind(NamedTuple):
    """What all connections of a listening socket have in common."""

    family: int
    type: int
    proto: int


def find_kind(listener: socket.socket) -> Kind:
    """The protocol is the kernel's number, 6 for TCP, and not Python's 0: asyncio sets TCP_NODELAY
    only then."""
    fd = os.dup(listener.fileno())
    try:
        same = socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise
    with same:
        return Kind(int(same.family), int(same.type), same.proto)


class ConnectedSocket(socket.socket):
    """A socket.socket with a callback for when it has been closed or detached.

    on_close: called then, once; or None. adopted: an event loop has made a transport for it, which
    closes it. transport: this transport, if it is known.
    """

    __slots__ = ("adopted", "on_close", "transport")

    on_close: Callable[[], object] | None
    adopted: bool
    transport: asyncio.WriteTransport | None

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        super().__init__(family, type, proto, fileno)
        self.on_close = None
        self.adopted = False
        self.transport = None

    def close(self) -> None:
        super().close()
        self._notify()

    def detach(self) -> int:
        fd = super().detach()
        self._notify()
        return fd

    def _notify(self) -> None:
        if self.fileno() < 0 and (on_close := self.on_close) is not None:
            self.on_close = None
            on_close()


def take_connection(
    fds: Descriptors, position: int, payload: bytes, kinds: Sequence[Kind]
) -> tuple[ConnectedSocket, Any]:
    """Hands over one descriptor as a socket, which owns it, with the peer's address.

    payload: that of struct fdp_connection.
    """
    kind = find_origin(payload, kinds)
    sock = ConnectedSocket.__new__(ConnectedSocket)
    initialize(sock, fds, position, *kind)
    return sock, read_address(payload, kind.family, sock)


def find_origin(payload: bytes, kinds: Sequence[Kind]) -> Kind:
    """The kind of the connection of a message."""
    return kinds[payload[0] | payload[1] << 8]


def read_address(payload: bytes, family: int, sock: socket.socket) -> Any:
    """The peer's address in a message, as socket.accept shows it. None if its family is none of
    these, and the peer has gone."""
    if family == _AF_INET:
        port, host = _INET.unpack_from(payload, _ADDRESS_AT)
        return socket.inet_ntoa(host), port
    if family == _AF_INET6:
        port, flow, host = _INET6.unpack_from(payload, _ADDRESS_AT)
        (scope,) = _SCOPE.unpack_from(payload, _SCOPE_AT)
        return socket.inet_ntop(_AF_INET6, host), port, flow, scope
    if family == socket.AF_UNIX:
        return read_name(payload[_ADDRESS_AT:])
    try:
        return sock.getpeername()
    except OSError:
        return None


def find_unread(sock: ConnectedSocket) -> int:
    """Positive if there are unread bytes: then closing would reset the connection, and the peer
    would lose what it has not read yet (RFC 1122, 4.2.2.13; Unix sockets likewise). Negative if the
    descriptor is closed.

    It checks once and does not wait, so that an ordinary connection needs no further round trip.
    """
    return int(_find_unread(sock.fileno()))


def end_sending(sock: ConnectedSocket) -> None:
    """Shuts down sending, so that the peer sees the end before the master closes its copy."""
    _end_sending(sock.fileno())


def read_out(sock: ConnectedSocket) -> None:
    """Discards input until its end, 0.5 s of silence, 2 s or 1 MiB: other connections wait."""
    deadline = time.monotonic() + 2
    left = 2**20
    with contextlib.suppress(OSError):
        while left > 0 and (timeout := min(0.5, deadline - time.monotonic())) > 0:
            sock.settimeout(timeout)
            if not (count := len(sock.recv(_MAX_READ))):
                return
            left -= count


async def read_out_async(sock: ConnectedSocket) -> None:
    """Discards input until its end, 5 s of silence, 30 s or 16 MiB: other connections do not
    wait."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 30
    left = 16 * 2**20
    sock.setblocking(False)
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        while left > 0 and (timeout := min(5, deadline - loop.time())) > 0:
            data = await asyncio.wait_for(loop.sock_recv(sock, _MAX_READ), timeout)
            if not data:
                return
            left -= len(data)
