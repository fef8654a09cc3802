"""Copies from a received descriptor to a file or to standard output."""

import errno
import fcntl
import os
import select
import stat
import time

from fdpass_c.commands.signals import time_limit
from fdpass_c.commands.streams import wait_for, write_all

_CHUNK = 1 << 20


def copy(source: int, target: int, timeout: float | None = None) -> OSError | None:
    """Copies from the position of source to its end. The caller still owns both.

    timeout: how many seconds this may wait for source in all. A peer can send single bytes, read
    the same pipe, or serve the file system. So each read itself is limited, not only the waiting
    before it. For a regular file each read has the whole time, because a file may be long.

    Returns the error that ended reading, or None. OSError: writing failed.
    """
    found = os.fstat(source)
    try:
        if _would_grow(source, found, target):
            return OSError(errno.EINVAL, "input file is output file")
    except OSError as error:  # The source is an O_PATH descriptor of the target.
        return error
    left = timeout
    while True:
        started = time.monotonic()
        try:
            with time_limit(left):
                chunk = _read(source)
        except OSError as error:
            return error
        if not chunk:
            return None
        if left is not None and not stat.S_ISREG(found.st_mode):
            left -= time.monotonic() - started
        write_all(target, chunk)


def _read(source: int) -> bytes:
    while True:
        try:
            return os.read(source, _CHUNK)
        except BlockingIOError:
            wait_for(source, select.POLLIN)


def _would_grow(source: int, found: os.stat_result, target: int) -> bool:
    """Whether source is the file that is written, and would grow as fast as it is read. The rules
    are those of cat(1)."""
    output = os.fstat(target)
    if not stat.S_ISREG(found.st_mode) or not os.path.samestat(found, output):
        return False
    appends = fcntl.fcntl(target, fcntl.F_GETFL) & os.O_APPEND
    end = output.st_size if appends else os.lseek(target, 0, os.SEEK_CUR)
    return os.lseek(source, 0, os.SEEK_CUR) < end
