"""The listening sockets of a pool: accepts at them, and handles the errors of accept()."""

import errno
import os
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.pool.connected import Kind, find_kind
from fdpass_c.pool.listeners import Address, Mode, check_listener, describe_listener, opened
from fdpass_c.pool.log import logger

SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Errors of accept() that last until something is closed."""

RETRY_DELAY = 0.05
"""Seconds until the next try, when a limit of the system is reached or an error repeats."""

# Usually these errors mean that one connection failed before it was accepted (man 2 accept), and
# the next accept works. But EPERM comes from a filter and ENETDOWN from the network: they may last.
_MAY_PASS = {
    errno.EINTR,
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
}


class Acceptor:
    """A borrowed listening socket, at which the C core accepts.

    sock: the socket. address: as from socket.getsockname. name: the address in the usual notation.
    record: a struct fdp_listener *. retry_at: no accept before this time, as time.monotonic.
    """

    def __init__(self, sock: socket.socket, origin: int) -> None:
        """Makes sock non-blocking until close(). origin: the number of this listener."""
        self.address: Any = sock.getsockname()
        self.name: str = describe_listener(sock)
        self.retry_at: float = 0.0
        self.record: Any = ffi.new("struct fdp_listener *")
        self.record.number = origin
        self.record.state = lib.FDP_READY
        self.sock: socket.socket = sock
        self._mode = Mode(sock)

    def fileno(self) -> int:
        return self.sock.fileno()

    def update_descriptor(self) -> None:
        """Tells the core the descriptor. If other code has closed the socket, the next accept fails
        with EBADF."""
        self.record.sock = self.sock.fileno()
        if self.record.sock < 0:
            self.record.state = lib.FDP_READY

    def take_error(self) -> int:
        """The errno of an accept that failed since the last call, or 0."""
        code, self.record.error = -self.record.error, 0
        return int(code)

    def pause_if_repeated(self, code: int) -> None:
        """Pauses this listener if an error that may pass has come twice in a row."""
        failures = self.record.failures
        if failures < 2:
            return
        self.retry_at = time.monotonic() + RETRY_DELAY
        self.record.state = lib.FDP_RESTING
        if failures == 2:  # The error is logged once, however long it lasts.
            reason = f"cannot accept at {self.name}: {os.strerror(code)}"
            logger.warning("%s; trying again every %s s", reason, RETRY_DELAY)

    @property
    def is_resting(self) -> bool:
        return bool(self.record.state == lib.FDP_RESTING)

    def resume(self, now: float) -> None:
        """Accepts again if the delay is over."""
        if self.is_resting and now >= self.retry_at:
            self.record.state = lib.FDP_READY

    def close(self) -> None:
        """Restores the mode of the socket, which stays open."""
        self._mode.restore()


class Acceptors:
    """All listening sockets of a pool.

    kinds: the Kind of each listener's connections. nonblocking: the mode of the accepted sockets.
    due_at: when to accept again after an error, as time.monotonic.
    """

    def __init__(self, nonblocking: bool) -> None:
        self.nonblocking = nonblocking
        self.kinds: list[Kind] = []
        self._all: list[Acceptor] = []
        self._own = ExitStack()

    def open(self, listeners: Iterable[socket.socket | Address]) -> None:
        """Borrows the sockets and opens the addresses, until close().

        Raises what open_listener raises, and a ValueError for a socket that does not listen or is
        given twice.
        """
        socks = [
            listener
            if isinstance(listener, socket.socket)
            else self._own.enter_context(opened(listener))
            for listener in listeners
        ]
        _check(socks)
        self._all = [Acceptor(sock, origin) for origin, sock in enumerate(socks)]
        # find_kind makes the sockets blocking in PyPy. fdp_accept_many makes them non-blocking
        # again.
        self.kinds = [*map(find_kind, socks)]

    def log_addresses(self) -> None:
        for acceptor in self._all:
            logger.info("listening at %s", acceptor.name)

    @property
    def addresses(self) -> tuple[Any, ...]:
        """The addresses of all listeners, each as from socket.getsockname."""
        return tuple(acceptor.address for acceptor in self._all)

    @property
    def is_open(self) -> bool:
        """Whether connections may still come."""
        return bool(self._all)

    @property
    def due_at(self) -> float:
        resting = (acceptor.retry_at for acceptor in self._all if acceptor.is_resting)
        return min(resting, default=float("inf"))

    def prepare(self, now: float) -> Sequence[Acceptor]:
        """Ends the delays that are over. Returns all listeners that are not closed."""
        for acceptor in self._all:
            acceptor.update_descriptor()
            acceptor.resume(now)
        return self._all

    def handle_errors(self) -> int:
        """Pauses or drops the listeners at which accepting failed. Returns an errno of SHORTAGES,
        or 0."""
        shortage = 0
        for acceptor in [*self._all]:
            code = acceptor.take_error()
            if code in SHORTAGES:
                shortage = code
            elif code in _MAY_PASS:
                acceptor.pause_if_repeated(code)
            elif code:
                # Other code has shut the socket down or closed it.
                reason = os.strerror(code)
                logger.error("cannot accept at %s any longer: %s", acceptor.name, reason)
                self._all.remove(acceptor)
                acceptor.close()
        return shortage

    def close_in_child(self) -> None:
        """In a forked child: closes its copies. The mode, which the parent shares, stays."""
        for acceptor in self._all:
            acceptor.sock.close()

    def close(self) -> None:
        """Restores the modes of the borrowed sockets, closes the sockets that open() opened, and
        removes their files. May be repeated."""
        for acceptor in self._all:
            acceptor.close()
        self._all.clear()
        self._own.close()


def _check(socks: Sequence[socket.socket]) -> None:
    for sock in socks:
        check_listener(sock)
    if len({sock.fileno() for sock in socks}) < len(socks):
        raise ValueError("a listening socket is given twice")
