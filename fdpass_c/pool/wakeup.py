"""Waking the master."""

import io
import mmap
import os

from fdpass_c.pool.counters import Counters

_COUNTERS_CHANGED = b"\0"
_LOOK_AROUND = b"\1"


class Wakeup:
    """A pipe that the master watches, and a shared flag that says whether it wants to be woken.

    A master that has room for connections reads the counters when the next one arrives. It need not
    be woken for each finished connection.

    The byte 0 in the pipe says that a worker's counters have changed, which only the C core must
    know. For every other byte the whole loop of the master runs; Python writes the numbers of
    signals.

    shared: memory that begins with the flag. wanted: the master is full, or has offered
    connections, and workers must wake it when they have room again. The master sets the flag and
    then reads the counters once more. A worker counts first and then reads the flag. So at least
    one of them notices the other, unless the processor reorders these accesses. Then the master
    notices at its next poll.

    writer: a file, because a thread that is late must not write to whoever has its number then.
    """

    def __init__(self) -> None:
        """Must be made before the fork."""
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
        """Readable when the master was woken."""
        return self._reader

    def wake(self) -> None:
        """Makes the master look at everything. From any process, thread or signal handler."""
        self._write(_LOOK_AROUND)

    def wake_for_counters(self) -> None:
        """In a worker: makes the master read the counters."""
        self._write(_COUNTERS_CHANGED)

    def _write(self, byte: bytes) -> None:
        try:
            self.writer.write(byte)  # Nothing, if it is full of wakeups already.
        except (BrokenPipeError, ValueError):
            return  # The master has ended, or the pool in this process.

    def wake_for_copy(self, counters: Counters, number: int) -> None:
        """In a worker that has closed its number-th connection: wakes the master if it has a copy.

        The peer sees the end only when the copy is closed too.
        """
        if counters.has_copy(number):
            self.wake_for_counters()

    def close_in_child(self) -> None:
        """In a worker, which only writes."""
        os.close(self._reader)

    def close(self) -> None:
        os.close(self._reader)
        self.writer.close()
