"""Listener: channels from a named Unix socket."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from fdpass_c.channel import Channel, refuse_fds
from fdpass_c.unix import identify, listen_at

Path = str | bytes | os.PathLike[str]


class Listener:
    """Listens at a path and accepts channels. A context manager; iterating accepts for ever."""

    def __init__(
        self, path: Path, *, backlog: int = 128, mode: int = 0o600, **options: Any
    ) -> None:
        """path: of the socket file, or a name in Linux's abstract namespace behind a leading NUL.
        backlog: connections that wait to be accepted. mode: the file's permissions; who may write
        may connect (man 7 unix). options: as for Channel, and hold for each one accepted.

        A socket file that nobody listens at any more is replaced. OSError: EADDRINUSE where
        somebody does, FileExistsError where path is something else than a socket, and as for
        socket.bind. An abstract name has no permissions: use allow_uids.
        """
        self._options = options
        self._path = os.fspath(path)
        self._file: tuple[int, int] | None = None
        self._pid = os.getpid()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not options.get("receive_fds", True):
                # Accepted sockets inherit it, so that not even an early descriptor gets in.
                refuse_fds(self._sock)
            if self._path[:1] in ("\0", b"\0"):
                self._sock.bind(self._path)
                self._sock.listen(backlog)
            else:
                self._file = listen_at(self._sock, self._path, backlog=backlog, mode=mode)
        except BaseException:
            self.close()
            raise

    def accept(self) -> Channel:
        """The next connection's Channel, which the caller owns and closes.

        A peer that allow_uids does not name is turned away, and the next one waited for.
        BlockingIOError and TimeoutError as the listener's timeout says.
        """
        while True:
            sock, _ = self._sock.accept()
            try:
                return Channel(sock, **self._options)
            except PermissionError:
                pass
            except BaseException:
                sock.close()
                raise

    def __iter__(self) -> Iterator[Channel]:
        while True:
            yield self.accept()

    def fileno(self) -> int:
        """The listening socket's descriptor, borrowed; -1 once closed."""
        return self._sock.fileno()

    def settimeout(self, timeout: float | None) -> None:
        """Seconds that accept waits; None for ever, 0 not at all. Channels start blocking."""
        self._sock.settimeout(timeout)

    def close(self) -> None:
        """Stops listening and removes the socket file, if it is still ours. Again is harmless.

        In a forked child it only closes the child's copy: the parent still listens.
        """
        if self._file is not None and self._pid == os.getpid():
            # Before the socket closes: a file that nobody listens at is anybody's to replace.
            with contextlib.suppress(OSError):
                if identify(self._path) == self._file:
                    os.unlink(self._path)
        self._file = None
        self._sock.close()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
