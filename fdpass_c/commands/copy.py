"""From a received descriptor to a file or to standard output."""

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
    """Copies from where source stands up to its end; borrows both.

    timeout: seconds that source may keep this waiting in all. It belongs to a peer, who can send a
    byte now and then, read the same pipe, or serve the file: so each read is bounded, and not only
    the waiting before it. What a regular file takes counts a read at a time, because a long one
    keeps nobody waiting.

    Returns what ended reading early, or None. OSError where writing failed.
    """
    found = os.fstat(source)
    if _would_grow(source, found, target):
        return OSError(errno.EINVAL, "input file is output file")
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
    """Whether source would grow as fast as it is read, and never end; as cat(1) sees it."""
    output = os.fstat(target)
    if not stat.S_ISREG(found.st_mode) or not os.path.samestat(found, output):
        return False
    appends = fcntl.fcntl(target, fcntl.F_GETFL) & os.O_APPEND
    end = output.st_size if appends else os.lseek(target, 0, os.SEEK_CUR)
    return os.lseek(source, 0, os.SEEK_CUR) < end
