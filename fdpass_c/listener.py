"""Listener: channels from a named Unix socket."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from fdpass_c.channel import Channel, refuse_fds
from fdpass_c.errors import raise_oserror

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
                with _locked_directory(self._path):
                    self._file = _bind_file(self._sock, self._path)
                    # Nobody gets around it: to connect needs listen, which comes after.
                    os.chmod(self._path, mode)
                    self._sock.listen(backlog)
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
                if _identify(self._path) == self._file:
                    os.unlink(self._path)
        self._file = None
        self._sock.close()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def _locked_directory(path: str | bytes) -> Iterator[None]:
    """Two starting at once must not take each other's new file, not listened at yet, for a stale
    one."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _identify(path: str | bytes) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _bind_file(sock: socket.socket, path: str | bytes) -> tuple[int, int]:
    """Returns the new file's device and inode."""
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        with contextlib.suppress(FileNotFoundError):  # Its owner has just removed it.
            _remove_stale(path)
        sock.bind(path)
    return _identify(path)


def _remove_stale(path: str | bytes) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            raise_oserror(errno.EADDRINUSE, "somebody listens there, with a full backlog")
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            raise_oserror(errno.EADDRINUSE, "a socket of another type is bound there")
        else:
            raise_oserror(errno.EADDRINUSE, "somebody listens there")
