"""Accepting: the listening sockets as the master sees them."""

import contextlib
import errno
import os
import selectors
import socket
from collections import deque
from collections.abc import Iterable
from typing import Any

from fdpass_c.pool.listeners import Address, describe_listener, open_listener
from fdpass_c.pool.log import logger

Connection = tuple[int, Any]
"""A connected socket's descriptor and the peer's address."""

SHORT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What accept() is refused for lack of, until something is closed."""

# One connection failed before it was accepted (man 2 accept); the next may be fine.
_ONE_FAILED = {
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


class Intake:
    """A listening socket that the master borrows; name: its address."""

    def __init__(self, sock: socket.socket, entrance: "Entrance") -> None:
        """Makes sock non-blocking until close()."""
        self.name = describe_listener(sock)
        self._sock = sock
        self._timeout = sock.gettimeout()
        self._entrance = entrance
        self._watched = False
        sock.setblocking(False)
        # Not public, but accept() makes a socket object that has to be detached again: it takes
        # twice as long, which would be a quarter of all that a flood costs the master.
        self._accept = sock._accept  # type: ignore[attr-defined]

    def accept(self, most: int, accepted: deque[Connection]) -> bool:
        """Adds the connections waiting, at most so many, to accepted; they are the caller's.

        Returns whether more may be waiting. OSError: one of SHORT_OF, and what means that the
        socket does not listen.
        """
        accept = self._accept
        enough = len(accepted) + most
        while len(accepted) < enough:
            try:
                accepted.append(accept())
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _ONE_FAILED:
                    raise
        return True

    def watch(self, wanted: bool) -> None:
        """Has the selector find the next connection, or no longer."""
        if wanted != self._watched:
            self._watched = wanted
            if wanted:
                self._entrance.selector.register(self._sock, selectors.EVENT_READ, self._note)
            else:
                self._entrance.selector.unregister(self._sock)

    def _note(self, _events: int) -> None:
        self._entrance.ready.append(self)

    def forget(self) -> None:
        """Closes a forked child's copy; what is the same open socket stays as it is."""
        self._sock.close()

    def close(self) -> None:
        """Gives the socket back as it was."""
        self.watch(False)
        if self._sock.fileno() >= 0:
            self._sock.settimeout(self._timeout)


class Entrance:
    """All listening sockets of a pool, each of which gets its share of what is accepted.

    ready: those where a connection may be waiting. Only the others are watched, so that neither a
    pool that is full nor one that is flooded has them armed and disarmed.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector
        self.ready: list[Intake] = []
        self._intakes: list[Intake] = []
        self._own: list[socket.socket] = []

    def open(self, listeners: Iterable[socket.socket | Address]) -> None:
        """Borrows the sockets and opens the addresses, until close(). Errors as open_listener."""
        opened = [self._open(listener) for listener in listeners]
        self._intakes = [Intake(sock, self) for sock in opened]
        self.ready = [*self._intakes]

    def _open(self, listener: socket.socket | Address) -> socket.socket:
        if isinstance(listener, socket.socket):
            return listener
        self._own.append(open_listener(listener))
        return self._own[-1]

    def announce(self) -> None:
        for intake in self._intakes:
            logger.info("listening at %s", intake.name)

    @property
    def is_open(self) -> bool:
        """Whether connections may still come."""
        return bool(self._intakes)

    def accept(self, room: int, accepted: deque[Connection]) -> None:
        """As Intake.accept: at most room in all, and what came before an error is in accepted."""
        enough = len(accepted) + room
        for left in range(len(self.ready), 0, -1):
            # Each gets its share of the room, and stands behind the others next time.
            intake = self.ready.pop(0)
            self.ready.append(intake)
            if not intake.accept(-(-(enough - len(accepted)) // left), accepted):
                self.ready.pop()
                intake.watch(True)

    def settle(self) -> None:
        """Before waiting in the selector, which would find those again that are known."""
        for intake in self.ready:
            intake.watch(False)

    def forget(self) -> None:
        """In a forked child."""
        for intake in self._intakes:
            intake.forget()

    def close(self) -> None:
        """Gives back what was borrowed, closes and unlinks the rest. Again is harmless."""
        for intake in self._intakes:
            intake.close()
        self._intakes.clear()
        self.ready.clear()
        for sock in self._own:
            if sock.family == socket.AF_UNIX:
                # While it listens, nobody else can have put a socket of theirs there.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(sock.getsockname())
            sock.close()
        self._own.clear()
