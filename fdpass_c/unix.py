"""Listening at a path: stale socket files, permissions, two that start at once."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator

from fdpass_c.errors import raise_oserror


def listen_at(
    sock: socket.socket, path: str | bytes, *, backlog: int, mode: int
) -> tuple[int, int]:
    """Binds sock to path and listens; returns what identify says of the new file.

    A socket file that nobody listens at any more is replaced. mode: the permissions of the file;
    to connect takes write permission. OSError: EADDRINUSE where somebody listens, FileExistsError
    where path is no socket; as for socket.bind.
    """
    with _locked_directory(path):
        bound = _bind_file(sock, path)
        # Nobody gets around it: to connect needs listen, which comes after.
        os.chmod(path, mode)
        sock.listen(backlog)
    return bound


def bind_unix(path: str, *, backlog: int, mode: int = 0o600) -> socket.socket:
    """A stream socket that listens at path; the caller closes it and unlinks path.

    The rest as for listen_at.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        listen_at(sock, path, backlog=backlog, mode=mode)
    except BaseException:
        sock.close()
        raise
    return sock


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


def identify(path: str | bytes) -> tuple[int, int]:
    """The device and inode of a socket file: whether it is still the one that was bound."""
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
    return identify(path)


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
