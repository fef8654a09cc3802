"""The socket that a handler gets, and how it is closed so that the peer gets all that was sent."""

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
"""Receiving raises one of these after the master has closed its side of the channel, or has died:
ConnectionResetError if the master left bytes unread."""

_MAX_READ = 65536

_find_unread = lib.fdp_try_find_unread
_end_sending = lib.fdp_try_end_sending

# Ints, because comparing enums takes three times as long.
_AF_INET, _AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)
# A struct sockaddr begins with two bytes: the family, or on some systems a length and the family.
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
    """Asks the kernel for the protocol, which is 6 for TCP. listener.proto is usually 0, and then
    asyncio would not set TCP_NODELAY."""
    fd = os.dup(listener.fileno())
    try:
        same = socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise
    with same:
        return Kind(int(same.family), int(same.type), same.proto)


class ConnectedSocket(socket.socket):
    """A socket.socket that calls a function when it has been closed or detached.

    on_close: the function, which is called once, or None. adopted: whether an event loop has made a
    transport, which then closes the socket. transport: this transport, if it is known.
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
    """Moves one descriptor into a socket, which then owns it. Returns the socket and the peer's
    address.

    payload: the payload of a struct fdp_connection.
    """
    kind = find_origin(payload, kinds)
    sock = ConnectedSocket.__new__(ConnectedSocket)
    initialize(sock, fds, position, *kind)
    return sock, read_address(payload, kind.family, sock)


def find_origin(payload: bytes, kinds: Sequence[Kind]) -> Kind:
    """The kind of the connection that a message with this payload carries."""
    return kinds[payload[0] | payload[1] << 8]


def read_address(payload: bytes, family: int, sock: socket.socket) -> Any:
    """The peer's address in a message, in the form in which socket.accept returns it.

    An address of another family than IPv4, IPv6 and Unix is read from the socket. It is None if
    the peer has gone.
    """
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
    """Returns a positive number if the socket has unread bytes, and a negative one if its
    descriptor is closed.

    If a socket with unread bytes is closed, the connection is reset, and the peer loses what it has
    not read yet (RFC 1122, 4.2.2.13; Unix sockets likewise). This does not wait for bytes that may
    still come, so that an ordinary connection is closed without delay.
    """
    return int(_find_unread(sock.fileno()))


def end_sending(sock: ConnectedSocket) -> None:
    """Shuts down sending. So the peer sees the end of the connection at once, although the master
    has not closed its copy of the descriptor yet."""
    _end_sending(sock.fileno())


def read_out(sock: ConnectedSocket) -> None:
    """Discards input until the peer closes, or sends nothing for 0.5 s, or until 2 s or 1 MiB are
    reached. The limits are low because the worker's other connections wait meanwhile."""
    deadline = time.monotonic() + 2
    left = 2**20
    with contextlib.suppress(OSError):
        while left > 0 and (timeout := min(0.5, deadline - time.monotonic())) > 0:
            sock.settimeout(timeout)
            if not (count := len(sock.recv(_MAX_READ))):
                return
            left -= count


async def read_out_async(sock: ConnectedSocket) -> None:
    """Discards input until the peer closes, or sends nothing for 5 s, or until 30 s or 16 MiB are
    reached. The limits are higher than in read_out, because no other connection has to wait."""
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
