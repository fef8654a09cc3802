"""Waking the master."""

import contextlib
import mmap
import os

from fdpass_c.pool.counters import Counters


class Wakeup:
    """A pipe that the master watches, and, in memory that all share, whether it wants to be woken.

    A master that has room for connections looks at the counters when one comes, and need not hear
    of each that is finished: that would be a turn of its own.

    wanted: the master is full, and workers are to ring when they have room again. It changes in
    one process and is read in another: whoever sets it looks at the counters once more, and whoever
    finishes counts first and looks at it then. So one of them sees the other, but for what
    processors may reorder within nanoseconds; that costs no more than the master's patience.
    """

    def __init__(self) -> None:
        """To be made before the fork."""
        self._shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self._reader, self.writer = os.pipe()
        for fd in (self._reader, self.writer):
            os.set_blocking(fd, False)

    @property
    def wanted(self) -> bool:
        return self._shared[0] != 0

    @wanted.setter
    def wanted(self, wanted: bool) -> None:
        self._shared[0] = wanted

    def fileno(self) -> int:
        """For a selector: readable once it has rung."""
        return self._reader

    def wake(self) -> None:
        """Wakes the master. From any process, thread or signal handler."""
        # It has rung often enough already, or there is nobody left to hear it.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self.writer, b"\0")

    def wake_for_copy(self, counters: Counters, number: int) -> None:
        """In a worker that has closed its number-th connection: wakes the master where that has a
        copy, so that the peer sees the end."""
        if counters.has_copy(number):
            self.wake()

    def clear(self) -> None:
        os.read(self._reader, 65536)

    def close_in_child(self) -> None:
        """In a worker, which only rings."""
        os.close(self._reader)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.writer)
