"""Listening at a path."""

import contextlib
import errno
import os
import socket
import stat


def bind_unix(path: str, *, backlog: int, mode: int = 0o600) -> socket.socket:
    """A listening stream socket at path; the caller closes it and unlinks path.

    A socket that nobody listens at any more, left by a program that was killed, is replaced.
    mode: the permissions of the socket file; to connect takes write permission.

    OSError: EADDRINUSE where somebody listens there or path is no socket; as for socket.bind.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_stale(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
