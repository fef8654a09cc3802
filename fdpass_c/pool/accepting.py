"""Accepting connections at the listening sockets of a pool."""

import errno
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from fdpass_c.pool.connected import Kind, find_kind
from fdpass_c.pool.connections import MOST_AT_ONCE, Connections
from fdpass_c.pool.listeners import Address, Mode, check_listener, describe_listener, opened
from fdpass_c.pool.log import logger

SHORT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}
"""Errors of accept(), and ENOSPC of epoll_ctl(), that last until something is closed."""

RETRY_DELAY = 0.05
"""Seconds until the next try, when a limit of the system is reached or an error repeats."""

# Usually one connection failed before it was accepted (man 2 accept), and the next is fine. EPERM
# comes from a filter and ENETDOWN from the network, and both may last.
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
    """Accepts at one listening socket, which it borrows.

    address: as from socket.getsockname. name: the address in the usual notation. retry_at: no
    accept before this time, as time.monotonic.
    """

    def __init__(self, sock: socket.socket, origin: int, acceptors: "Acceptors") -> None:
        """Makes sock non-blocking until close(). origin: its number."""
        self.address: Any = sock.getsockname()
        self.name: str = describe_listener(sock)
        self.retry_at: float = 0.0
        self._failures = 0
        self._sock = sock
        self._origin = origin
        self._acceptors = acceptors
        self._watched = False
        self._mode = Mode(sock)

    def accept(self, most: int, nonblocking: bool, accepted: Connections) -> bool:
        """Adds the waiting connections to accepted, but not more than most.

        Returns whether more may be waiting. OSError: one of SHORT_OF, or the socket does not
        listen.
        """
        try:
            count = accepted.accept(self._sock, self._origin, nonblocking, most)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _MAY_PASS:
                raise
            self._failures += 1
            if self._failures > 1:
                self._pause(error)
            return True
        self._failures = 0
        return count == min(most, MOST_AT_ONCE)

    def _pause(self, error: OSError) -> None:
        self.retry_at = time.monotonic() + RETRY_DELAY
        if self._failures == 2:  # Logged once, however long it lasts.
            reason = f"cannot accept at {self.name}: {error.strerror}"
            logger.warning("%s; trying again every %s s", reason, RETRY_DELAY)

    def watch(self, wanted: bool) -> None:
        """Makes the selector report the next connection, or not. OSError: there is no room."""
        if wanted != self._watched:
            if wanted:
                self._acceptors.selector.register(self._sock, selectors.EVENT_READ, self._note)
            else:
                self._acceptors.selector.unregister(self._sock)
            self._watched = wanted

    def _note(self, _events: int) -> None:
        self._acceptors.ready.append(self)

    def close_in_child(self) -> None:
        """Closes a forked child's copy, and leaves the mode of the shared socket as it is."""
        self._sock.close()

    def close(self) -> None:
        """Restores the mode of the socket, which stays open."""
        self.watch(False)
        self._mode.restore()


class Acceptors:
    """Accepts at all listening sockets of a pool, in turn.

    kinds: of the connections, by the number of the listener. ready: those where a connection may be
    waiting, the next one first. Only the others are watched, so that a pool that is full, or always
    has connections waiting, needs no system calls to watch and unwatch them. due_at: when to accept
    again after an error, as time.monotonic.
    """

    def __init__(self, selector: selectors.BaseSelector, nonblocking: bool) -> None:
        """nonblocking: the mode of the accepted sockets."""
        self.selector = selector
        self._nonblocking = nonblocking
        self.ready: deque[Acceptor] = deque()
        self.kinds: list[Kind] = []
        self._paused: list[Acceptor] = []
        self._all: list[Acceptor] = []
        self._own = ExitStack()

    def open(self, listeners: Iterable[socket.socket | Address]) -> None:
        """Borrows the sockets and opens the addresses, until close(). Errors as open_listener.

        ValueError: a socket that does not listen, or is given twice.
        """
        socks = [
            listener
            if isinstance(listener, socket.socket)
            else self._own.enter_context(opened(listener))
            for listener in listeners
        ]
        _check(socks)
        self._all = [Acceptor(sock, origin, self) for origin, sock in enumerate(socks)]
        # With PyPy this makes them blocking; the next accept makes them non-blocking again.
        self.kinds = [*map(find_kind, socks)]
        self.ready.extend(self._all)

    def log_addresses(self) -> None:
        for acceptor in self._all:
            logger.info("listening at %s", acceptor.name)

    @property
    def addresses(self) -> tuple[Any, ...]:
        """Of all listeners, as from socket.getsockname."""
        return tuple(acceptor.address for acceptor in self._all)

    @property
    def is_open(self) -> bool:
        """Whether connections may still come."""
        return bool(self._all)

    @property
    def due_at(self) -> float:
        if not self._paused:
            return float("inf")
        return min(acceptor.retry_at for acceptor in self._paused)

    def resume(self, now: float) -> None:
        """Makes the listeners ready again whose delay is over."""
        if now >= self.due_at:
            self.ready.extend(acceptor for acceptor in self._paused if acceptor.retry_at <= now)
            self._paused = [acceptor for acceptor in self._paused if acceptor.retry_at > now]

    def accept(self, room: int, accepted: Connections) -> None:
        """Accepts at most room connections. After an error, accepted has those before it.

        OSError: one of SHORT_OF.
        """
        enough = len(accepted) + room
        with_more = room % len(self.ready)
        for left in range(len(self.ready), 0, -1):
            if len(accepted) >= enough:
                return  # Those that had no turn are the first next time.
            acceptor = self.ready.popleft()
            self._accept(acceptor, -(-(enough - len(accepted)) // left), accepted)
        # All had a turn, and the first ones accepted one more than the others.
        self.ready.rotate(-with_more)

    def _accept(self, acceptor: Acceptor, most: int, accepted: Connections) -> None:
        try:
            more = acceptor.accept(most, self._nonblocking, accepted)
            if not more:
                acceptor.watch(True)
        except OSError as error:
            if error.errno in SHORT_OF:
                self.ready.append(acceptor)
                raise
            # Other code has shut it down or closed it.
            logger.error("cannot accept at %s any longer: %s", acceptor.name, error.strerror)
            self._all.remove(acceptor)
            acceptor.close()
            return
        if not more:
            return
        if acceptor.retry_at > time.monotonic():
            self._paused.append(acceptor)
        else:
            self.ready.append(acceptor)

    def unwatch(self) -> None:
        """Called before a wait in the selector, which would report the ready ones again."""
        for acceptor in self.ready:
            acceptor.watch(False)
        for acceptor in self._paused:
            acceptor.watch(False)

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        for acceptor in self._all:
            acceptor.close_in_child()

    def close(self) -> None:
        """Restores the borrowed sockets, and closes and removes its own. May be repeated."""
        for acceptor in self._all:
            acceptor.close()
        self._all.clear()
        self.ready.clear()
        self._paused.clear()
        self._own.close()


def _check(socks: Sequence[socket.socket]) -> None:
    for sock in socks:
        check_listener(sock)
    if len({sock.fileno() for sock in socks}) < len(socks):
        raise ValueError("a listening socket is given twice")
