"""Waking the master."""

import mmap
import os

from fdpass_c.pool.counters import Counters


class Wakeup:
    """A pipe that the master watches, and a shared flag that says whether it wants to be woken.

    A master that has room for connections reads the counters when the next one arrives. It need not
    be woken for each finished connection.

    wanted: the master is full, and workers must wake it when they have room again. The master sets
    the flag and then reads the counters once more. A worker counts first and then reads the flag.
    So at least one of them notices the other, unless the processor reorders these accesses. Then
    the master notices at its next poll.
    """

    def __init__(self) -> None:
        """Must be made before the fork."""
        self._shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self.writer: int
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
        """For a selector: readable when the master was woken."""
        return self._reader

    def wake(self) -> None:
        """Wakes the master. From any process, thread or signal handler."""
        try:
            os.write(self.writer, b"\0")
        except (BlockingIOError, BrokenPipeError):
            return  # The pipe is full of wakeups already, or the master has ended.

    def wake_for_copy(self, counters: Counters, number: int) -> None:
        """In a worker that has closed its number-th connection: wakes the master if it has a copy.

        The peer sees the end only when the copy is closed too.
        """
        if counters.has_copy(number):
            self.wake()

    def clear(self) -> None:
        """In the master: after this it can be woken again."""
        try:
            os.read(self._reader, 65536)
        except BlockingIOError:
            return

    def close_in_child(self) -> None:
        """In a worker, which only writes."""
        os.close(self._reader)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.writer)
