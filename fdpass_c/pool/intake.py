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
    """A listening socket that the master borrows.

    name: its address. ready: a connection may be waiting. Only where none is does a selector watch
    the socket, so that neither a pool that is full nor one that is flooded has it armed and
    disarmed.
    """

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        """Makes sock non-blocking until close()."""
        self._sock = sock
        self._timeout = sock.gettimeout()
        self.name = describe_listener(sock)
        self._selector = selector
        self._watched = False
        sock.setblocking(False)
        # Not public, but accept() makes a socket object that has to be detached again: it takes
        # twice as long, which would be a quarter of all that a flood costs the master.
        self._accept = sock._accept  # type: ignore[attr-defined]
        self.ready = True

    def accept(self, most: int, accepted: deque[Connection]) -> None:
        """Adds the connections waiting, at most so many, to accepted; they are the caller's.

        ready is False after it where no more are waiting. OSError: one of SHORT_OF, and what
        means that the socket does not listen.
        """
        accept = self._accept
        enough = len(accepted) + most
        while len(accepted) < enough:
            try:
                accepted.append(accept())
            except BlockingIOError:
                self.ready = False
                return
            except OSError as error:
                if error.errno not in _ONE_FAILED:
                    raise

    def note(self, _events: int) -> None:
        """The selector has found a connection."""
        self.ready = True

    def watch(self, wanted: bool) -> None:
        """Has the selector call note when a connection comes, or no longer."""
        if wanted != self._watched:
            self._watched = wanted
            if wanted:
                self._selector.register(self._sock, selectors.EVENT_READ, self.note)
            else:
                self._selector.unregister(self._sock)

    def forget(self) -> None:
        """Closes a forked child's copy; what is the same open socket stays as it is."""
        self._sock.close()

    def close(self) -> None:
        """Gives the socket back as it was."""
        self.watch(False)
        if self._sock.fileno() >= 0:
            self._sock.settimeout(self._timeout)


class Entrance:
    """All listening sockets of a pool, each of which gets its share of what is accepted."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._own: list[socket.socket] = []
        self._intakes: deque[Intake] = deque()

    def open(self, listeners: Iterable[socket.socket | Address]) -> None:
        """Borrows the sockets and opens the addresses, until close(). Errors as open_listener."""
        opened = [self._open(listener) for listener in listeners]
        self._intakes.extend(Intake(sock, self._selector) for sock in opened)

    def announce(self) -> None:
        for intake in self._intakes:
            logger.info("listening at %s", intake.name)

    def _open(self, listener: socket.socket | Address) -> socket.socket:
        if isinstance(listener, socket.socket):
            return listener
        self._own.append(open_listener(listener))
        return self._own[-1]

    @property
    def is_open(self) -> bool:
        """Whether connections may still come."""
        return bool(self._intakes)

    @property
    def is_ready(self) -> bool:
        """Whether a connection may be waiting."""
        return any(intake.ready for intake in self._intakes)

    def accept(self, room: int, accepted: deque[Connection]) -> None:
        """As Intake.accept: at most room in all, and what came before an error is in accepted."""
        ready = [intake for intake in self._intakes if intake.ready]
        # Each gets its share of the room, and the first of the turn what is left over.
        self._intakes.rotate()
        enough = len(accepted) + room
        for number, intake in enumerate(ready):
            intake.accept(-(-(enough - len(accepted)) // (len(ready) - number)), accepted)

    def watch(self, wanted: bool) -> None:
        """Has the selector find the next connection, wherever none is known to wait."""
        for intake in self._intakes:
            intake.watch(wanted and not intake.ready)

    def forget(self) -> None:
        """In a forked child."""
        for intake in self._intakes:
            intake.forget()

    def close(self) -> None:
        """Gives back what was borrowed, closes and unlinks the rest. Again is harmless."""
        for intake in self._intakes:
            intake.close()
        self._intakes.clear()
        for sock in self._own:
            if sock.family == socket.AF_UNIX:
                # While it listens, nobody else can have put a socket of theirs there.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(sock.getsockname())
            sock.close()
        self._own.clear()
