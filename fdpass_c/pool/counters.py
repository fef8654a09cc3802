"""How far a worker is, in memory that it shares with the master."""

import mmap
import time

_HANDLED, _BEGUN, _READY, _FAILED, _RELEASED, _LEAVING, _HEARTBEATS = range(7)
_MASK = 2**32 - 1
_BUSY, _SINCE = range(2)
_BYTES_OF_COUNTS = 64


class Counters:
    """Counts that one side raises and the other reads, modulo 2**32, and whether it has started
    and is to leave.

    A message would have to be sent before each handler runs, to be sure that it is there if the
    worker is killed then. A count in shared memory is, without a system call. Each is an aligned
    machine word, so that the other process never sees half of a change.
    """

    def __init__(self) -> None:
        """To be made before the fork."""
        shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self._words = shared[:_BYTES_OF_COUNTS].cast("I")
        self._times = shared[_BYTES_OF_COUNTS:].cast("Q")
        self.begun: int = 0
        self.handled: int = 0

    def start(self) -> None:
        """In the worker: ready for connections."""
        self._words[_READY] = 1

    def begin(self, count: int) -> None:
        """In the worker: before the handlers of so many connections run."""
        self.begun += count
        self._words[_BEGUN] = self.begun & _MASK

    def fail(self) -> None:
        """In the worker, before finish: the handler raised."""
        self._words[_FAILED] = (self._words[_FAILED] + 1) & _MASK

    def finish(self) -> None:
        """In the worker: when the handler of one connection has returned."""
        self.handled += 1
        self._words[_HANDLED] = self.handled & _MASK

    def heartbeat(self) -> None:
        """In the worker: it makes progress, although nothing is begun or finished."""
        self._words[_HEARTBEATS] = (self._words[_HEARTBEATS] + 1) & _MASK

    def enter_handler(self) -> None:
        """In a plain worker: it can do nothing else until leave_handler."""
        self._times[_SINCE] = time.monotonic_ns()

    def leave_handler(self) -> None:
        busy = self._times[_BUSY] + time.monotonic_ns() - self._times[_SINCE]
        # In this order a reader finds too little rather than too much.
        self._times[_SINCE] = 0
        self._times[_BUSY] = busy

    def note_cpu_time(self) -> None:
        """In an event loop's worker: how long it could do nothing else."""
        self._times[_BUSY] = time.process_time_ns()

    def count_busy(self) -> float:
        """In any thread of the master: seconds that the worker could do nothing else.

        For a moment it may be less than it was.
        """
        busy = self._times[_BUSY]
        if since := self._times[_SINCE]:
            busy += max(0, time.monotonic_ns() - since)
        return float(busy) / 1e9

    @property
    def progress(self) -> tuple[int, int, int]:
        """In the master: what changes while the worker does something."""
        words = self._words
        return words[_BEGUN], words[_HANDLED], words[_HEARTBEATS]

    @property
    def has_started(self) -> bool:
        return self._words[_READY] != 0

    def leave(self) -> None:
        """In the master: the worker gets no more connections."""
        self._words[_LEAVING] = 1

    @property
    def is_leaving(self) -> bool:
        return self._words[_LEAVING] != 0

    def count_handled(self) -> int:
        """In any thread of the master: what read will find."""
        handled = self.handled
        return handled + ((self._words[_HANDLED] - handled) & _MASK)

    @property
    def failed(self) -> int:
        """Of those handled, whose handler raised. In any thread of the master."""
        return self._words[_FAILED]

    def release(self, count: int) -> None:
        """In the master: it closes its copies of the first so many connections now."""
        self._words[_RELEASED] = count & _MASK

    def has_copy(self, number: int) -> bool:
        """In the worker: whether the master may have a copy of the number-th connection begun."""
        return 0 < (number - self._words[_RELEASED]) & _MASK <= self.begun

    def read(self) -> bool:
        """In the master: brings begun and handled up to date; returns whether one of them rose."""
        # In this order, so that handled is never the greater.
        finished = (self._words[_HANDLED] - self.handled) & _MASK
        begun = (self._words[_BEGUN] - self.begun) & _MASK
        self.handled += finished
        self.begun += begun
        return bool(finished or begun)
