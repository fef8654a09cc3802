"""The socket that a handler gets, and ending it without cutting what it has sent."""

import asyncio
import contextlib
import marshal
import socket
import time
from collections.abc import Callable
from typing import Any

from fdpass_c.descriptors import Descriptors
from fdpass_c.errors import PeerClosedError

dump_address: Callable[[Any], bytes] = marshal.dumps
"""The payload of a connection. The worker was forked, so that both run the same Python."""

MASTER_GONE = (PeerClosedError, ConnectionResetError)
"""The master has closed its side of the channel, or died; ConnectionResetError with something
unread."""

_MAX_READ = 65536


class ConnectedSocket(socket.socket):
    """A socket.socket with a callback for when it has been closed or detached.

    on_close: called then, once; or None. adopted: an event loop has made a
    transport of it, which closes it; transport: that one, where it is known.
    """

    __slots__ = ("adopted", "on_close", "transport")

    on_close: Callable[[], object] | None
    adopted: bool
    transport: asyncio.BaseTransport | None

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
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


def take_socket(fds: Descriptors, position: int = 0) -> ConnectedSocket:
    """Hands over one descriptor as a socket, which owns it."""
    sock = ConnectedSocket(fds[position])
    fds.take(position)
    return sock


def shut_down(sock: ConnectedSocket) -> bool:
    """Lets the peer see the end now, not when the master closes its copy.

    Returns whether there were unread bytes: closing at once would reset the connection, and the
    peer lose what it has not read yet (RFC 1122, 4.2.2.13; Unix sockets likewise). It looks once
    and does not wait, so that an ordinary connection costs no round trip.
    """
    try:
        sock.shutdown(socket.SHUT_WR)
        if sock.gettimeout():
            sock.setblocking(False)
        return bool(sock.recv(_MAX_READ, socket.MSG_DONTWAIT))
    except OSError:  # The handler closed or detached it, or the peer has gone, or is silent.
        return False


def read_out(sock: ConnectedSocket) -> None:
    """Reads and drops until the end, 0.5 s of silence, 2 s or 1 MiB: other connections wait."""
    deadline = time.monotonic() + 2
    left = 2**20
    with contextlib.suppress(OSError):
        while left > 0 and (timeout := min(0.5, deadline - time.monotonic())) > 0:
            sock.settimeout(timeout)
            if not (count := len(sock.recv(_MAX_READ))):
                return
            left -= count


async def read_out_async(sock: ConnectedSocket) -> None:
    """Reads and drops until the end, 5 s of silence, 30 s or 16 MiB: nothing waits for it."""
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
