"""Listener: channels from a named Unix socket."""

import errno
import socket
from collections.abc import Collection, Iterator
from functools import partial

from fdpass_c.channel import DEFAULT_MAX_FDS, DEFAULT_MAX_PAYLOAD, Channel, refuse_fds
from fdpass_c.errors import NotCopied
from fdpass_c.unix import Path, SocketFile, as_address, is_abstract
from fdpass_c.waiting import READABLE, Deadline


class Listener(NotCopied):
    """Listens at a path and accepts channels. A context manager; iterating accepts for ever."""

    def __init__(
        self,
        path: Path,
        *,
        backlog: int = 128,
        mode: int = 0o600,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> None:
        """path: of the socket file, or a name in Linux's abstract namespace behind a leading NUL.
        backlog: connections that wait to be accepted. mode: the file's permissions; who may write
        may connect (man 7 unix). The others are as for Channel, and hold for each one accepted.

        A socket file that nobody listens at any more is replaced; a file beside it, its name with
        .lock at the end, is there meanwhile. ValueError: a NUL in a path. OSError: EADDRINUSE where
        somebody listens or is about to, FileExistsError where path is something else than a socket,
        and as for socket.bind. Nothing is left then.

        An abstract name has no permissions: use allow_uids. What a user's number is worth,
        Credentials says.
        """
        self._make_channel = partial(
            Channel,
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        address = as_address(path)
        self._file = None if is_abstract(address) else SocketFile(address)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.settimeout(None)
            if not receive_fds:
                # Accepted sockets inherit it, so that not even an early descriptor gets in.
                refuse_fds(self._sock)
            if self._file is None:
                self._sock.bind(address)
                self._sock.listen(backlog)
            else:
                self._file.listen(self._sock, backlog=backlog, mode=mode)
        except BaseException:
            self.close()
            raise

    def accept(self) -> Channel:
        """The next connection's Channel, which the caller owns and closes.

        A peer that allow_uids does not name is turned away, and the next one waited for while the
        listener's timeout lasts. TimeoutError when it is over; BlockingIOError where it is 0 and
        nobody is there, or one that was turned away. OSError as for socket.accept.
        """
        deadline = Deadline(self, READABLE)
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                deadline.handle(errno.EAGAIN)
                continue
            try:
                sock.settimeout(None)
                return self._make_channel(sock)
            except PermissionError:
                if self._timeout is not None:
                    deadline.handle(errno.EAGAIN)
            except BaseException:
                sock.close()
                raise

    def __iter__(self) -> Iterator[Channel]:
        while True:
            yield self.accept()

    def fileno(self) -> int:
        """The listening socket's descriptor, borrowed; -1 once closed."""
        return self._sock.fileno()

    def gettimeout(self) -> float | None:
        """Seconds that accept waits in all; None for ever, 0 not at all."""
        return self._timeout

    def settimeout(self, timeout: float | None) -> None:
        """Sets what gettimeout returns. Channels start blocking."""
        self._sock.settimeout(timeout)
        # Only accept knows how much of it is over.
        self._sock.setblocking(timeout is None)
        self._timeout = timeout

    def close(self) -> None:
        """Stops listening and removes the socket file, if it is still ours. Again is harmless.

        In a forked child it only closes the child's copy: the parent still listens.
        """
        if self._file is not None:
            self._file.remove()
        self._sock.close()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
