"""Wakes the master."""

import io
import mmap
import os

from fdpass_c.pool.counters import Counters

_COUNTERS_CHANGED = b"\0"
_CHECK_ALL = b"\1"


class Wakeup:
    """A pipe that the master watches, and a shared flag that says whether the master wants to be
    woken.

    A master that has room for connections reads the counters when the next connection arrives. So
    it need not be woken for each finished connection.

    The byte 0 in the pipe says that a worker's counters have changed, which the C core handles
    alone. Any other byte makes the whole loop of the master run. Python writes such a byte for each
    signal: the signal's number.

    shared: memory that begins with the flag. wanted: the flag. It is set if the master is full or
    has offered connections. Then workers must wake the master when they have finished connections.
    The master sets the flag and then reads the counters once more. A worker counts first and then
    reads the flag. So at least one of them notices the other, unless the processor reorders these
    accesses. In that case the master notices the change at its next poll.

    writer: a file object. Unlike a number, it cannot refer to another file if a thread writes after
    close().
    """

    def __init__(self) -> None:
        """The master must call this before it forks the workers."""
        self.shared: mmap.mmap = mmap.mmap(-1, mmap.PAGESIZE)
        self._reader, writer = os.pipe()
        try:
            self.writer: io.FileIO = io.FileIO(writer, "w")
        except BaseException:
            os.close(self._reader)
            os.close(writer)
            raise
        for fd in (self._reader, writer):
            os.set_blocking(fd, False)

    @property
    def wanted(self) -> bool:
        return self.shared[0] != 0

    def fileno(self) -> int:
        """The descriptor that is readable when the master was woken."""
        return self._reader

    def wake(self) -> None:
        """Makes the whole loop of the master run. May be called in any process, thread or signal
        handler."""
        self._write(_CHECK_ALL)

    def wake_for_counters(self) -> None:
        """In a worker: makes the master read the counters."""
        self._write(_COUNTERS_CHANGED)

    def _write(self, byte: bytes) -> None:
        try:
            self.writer.write(byte)  # Writes nothing if the pipe is full, and so wakes already.
        except (BrokenPipeError, ValueError):
            return  # The master has ended, or close() was called.

    def wake_for_copy(self, counters: Counters, number: int) -> None:
        """In a worker that has closed its number-th connection: wakes the master if the master may
        have a copy of it. The peer sees the end only when this copy is closed too.
        """
        if counters.has_copy(number):
            self.wake_for_counters()

    def close_in_child(self) -> None:
        """In a worker, which only writes: closes the end for reading."""
        os.close(self._reader)

    def close(self) -> None:
        os.close(self._reader)
        self.writer.close()
