"""What a worker has begun and finished, in memory that it shares with the master."""

import mmap
import time

from fdpass_c._native import lib

_HANDLED, _BEGUN = lib.FDP_WORD_HANDLED, lib.FDP_WORD_BEGUN
_RELEASED, _TAKEN = lib.FDP_WORD_RELEASED, lib.FDP_WORD_TAKEN
_READY, _FAILED, _LEAVING, _ENDING, _HEARTBEATS = range(lib.FDP_WORD_OWN, lib.FDP_WORD_OWN + 5)
_MASK = 2**32 - 1
_BUSY, _SINCE = range(2)
_BYTES_OF_COUNTS = 4 * lib.FDP_WORD_COUNT


class Counters:
    """Counts that the worker increases and the master reads, modulo 2**32, and flags that say
    whether the worker has started, is to leave, and ends.

    Counts in shared memory remain if the worker is killed. Changing one needs no system call, while
    a message to the master would. Each is an aligned machine word, so that the other process never
    sees half of a change.

    shared: all of the memory. words: the counts at its beginning, which the C core reads in the
    master. begun, handled: in the worker, how many connections it has begun and handled.
    """

    def __init__(self) -> None:
        """The master must call this before it forks the worker."""
        self.shared: mmap.mmap = mmap.mmap(-1, mmap.PAGESIZE)
        shared = memoryview(self.shared)
        self.words: memoryview[int] = shared[:_BYTES_OF_COUNTS].cast("I")
        self._times = shared[_BYTES_OF_COUNTS:].cast("Q")
        self.begun: int = 0
        self.handled: int = 0

    def start(self) -> None:
        """In the worker: says that it is ready for connections."""
        self.words[_READY] = 1

    def begin(self, count: int) -> None:
        """In the worker: counts connections that it was given, before their handlers run."""
        self.begun += count
        self.words[_BEGUN] = (self.words[_BEGUN] + count) & _MASK

    def begin_taken(self) -> None:
        """In the worker: counts a connection that it has taken, before the handler runs. The C core
        has already counted it in the shared memory."""
        self.begun += 1

    def fail(self) -> None:
        """In the worker: counts an exception of the handler. finish() follows."""
        self.words[_FAILED] = (self.words[_FAILED] + 1) & _MASK

    def finish(self) -> None:
        """In the worker: counts one connection as handled."""
        self.handled += 1
        self.words[_HANDLED] = self.handled & _MASK

    def heartbeat(self) -> None:
        """In the worker: says that it makes progress, although it begins and finishes nothing."""
        self.words[_HEARTBEATS] = (self.words[_HEARTBEATS] + 1) & _MASK

    def enter_handler(self) -> None:
        """In a plain worker: starts to count the time as busy, until leave_handler."""
        self._times[_SINCE] = time.monotonic_ns()

    def leave_handler(self) -> None:
        busy = self._times[_BUSY] + time.monotonic_ns() - self._times[_SINCE]
        # In this order the master never counts the same time twice.
        self._times[_SINCE] = 0
        self._times[_BUSY] = busy

    def note_cpu_time(self) -> None:
        """In a worker with an event loop: sets the busy time to the CPU time."""
        self._times[_BUSY] = time.process_time_ns()

    def count_busy(self) -> float:
        """In any thread of the master: seconds in which the worker could do nothing else.

        For a moment it may be less than before.
        """
        busy = self._times[_BUSY]
        if since := self._times[_SINCE]:
            busy += max(0, time.monotonic_ns() - since)
        return float(busy) / 1e9

    @property
    def progress(self) -> tuple[int, int, int]:
        """In the master: the counts that change if the worker makes progress."""
        words = self.words
        return words[_BEGUN], words[_HANDLED], words[_HEARTBEATS]

    @property
    def has_started(self) -> bool:
        return self.words[_READY] != 0

    def leave(self) -> None:
        """In the master, or in a worker that ends: says that it gets no more connections."""
        self.words[_LEAVING] = 1

    @property
    def is_leaving(self) -> bool:
        return self.words[_LEAVING] != 0

    def end(self) -> None:
        """In the worker: says that it begins no more connections, not even those that it was
        given."""
        self.words[_ENDING] = 1

    @property
    def is_ending(self) -> bool:
        return self.words[_ENDING] != 0

    def count_handled(self, before: int) -> int:
        """In any thread of the master: how many connections were handled. before: an earlier
        count."""
        return before + ((self.words[_HANDLED] - before) & _MASK)

    def count_taken(self, before: int) -> int:
        """In any thread of the master: how many connections were taken. before: an earlier
        count."""
        return before + ((self.words[_TAKEN] - before) & _MASK)

    @property
    def failed(self) -> int:
        """In any thread of the master: how many handlers raised an exception."""
        return self.words[_FAILED]

    def has_copy(self, number: int) -> bool:
        """In the worker: whether the master may still have a copy of its number-th connection."""
        return 0 < (number - self.words[_RELEASED]) & _MASK <= self.begun
