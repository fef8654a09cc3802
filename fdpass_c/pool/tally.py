"""How far a worker is, in memory that it shares with the master."""

import mmap


class Tally:
    """Two counts that only the worker raises, modulo 2**32.

    A message would have to be sent before each handler runs, to be sure that it is there if the
    worker is killed then. A count in shared memory is, without a system call. Each is an aligned
    machine word, so that the other process never sees half of a change.
    """

    def __init__(self) -> None:
        """To be made before the fork."""
        self._counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")
        self.begun = self.handled = 0

    def begin(self, count: int) -> None:
        """In the worker: before the handlers of so many connections run."""
        self.begun += count
        self._counts[0] = self.begun & 0xFFFFFFFF

    def finish(self) -> None:
        """In the worker: when the handler of one connection has returned."""
        self.handled += 1
        self._counts[1] = self.handled & 0xFFFFFFFF

    def read(self) -> int:
        """In the master: brings begun and handled up to date; returns by how much begun rose."""
        # In this order, so that handled is never the greater.
        self.handled += (self._counts[1] - self.handled) & 0xFFFFFFFF
        rise = (self._counts[0] - self.begun) & 0xFFFFFFFF
        self.begun += rise
        return rise
