"""Standard streams as the caller left them: closed, or in non-blocking mode."""

import errno
import os
import select
import sys

from fdpass_c.errors import FdpassError


def fill_closed() -> None:
    """Opens /dev/null for each closed standard stream. Otherwise the next file would get its
    number.

    It is opened for the wrong direction, so that using it fails. Messages to standard error are
    lost.
    """
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stderr is None:
        # Without it, Python and its modules print their messages to standard output.
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115, stays open


def open_input(name: str) -> int:
    """Opens a file for reading, which the caller closes; - is descriptor 0, which stays open."""
    if name != "-":
        return os.open(name, os.O_RDONLY)
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), name)
    return 0


def find_output() -> int:
    """The descriptor of standard output. FdpassError: it is closed."""
    if sys.stdout is None:
        raise FdpassError("standard output is closed")
    return 1


def write_all(fd: int, data: bytes) -> None:
    """Writes all, even if fd is in non-blocking mode. OSError as for os.write."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            wait_for(fd, select.POLLOUT)


def wait_for(fd: int, event: int) -> None:
    """Waits until a descriptor in non-blocking mode is ready."""
    poller = select.poll()
    poller.register(fd, event)
    poller.poll()
