"""Standard streams, which may be closed or in non-blocking mode when the command starts."""

import errno
import os
import select
import sys

from fdpass_c.errors import FdpassError


def fill_closed() -> None:
    """Opens /dev/null for each closed standard stream. Otherwise the next opened file would get the
    number of that stream.

    /dev/null is opened for the wrong direction, so that using standard input or output fails. For
    standard error it is opened for writing: messages are lost.
    """
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)
    if sys.stderr is None:
        # If sys.stderr is None, Python and its modules print their messages to standard output.
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115, stays open


def open_input(name: str) -> int:
    """Opens a file for reading and returns its descriptor, which the caller closes. For the name -
    it returns descriptor 0, which stays open."""
    if name != "-":
        return os.open(name, os.O_RDONLY)
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), name)
    return 0


def find_output() -> int:
    """Returns the descriptor of standard output. FdpassError: standard output is closed."""
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
    """Waits until the descriptor is ready for event, POLLIN or POLLOUT of the module select."""
    poller = select.poll()
    poller.register(fd, event)
    poller.poll()
