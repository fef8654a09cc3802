"""The connections of each worker.

They are in memory of the C core, which moves connections inside one call. So a signal handler that
raises an exception neither loses a connection nor gives it two owners.
"""

from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.channel import Channel, end_of
from fdpass_c.pool.counters import Counters

_MOST = 2**64 - 1
_LARGEST_CAPACITY = 2**32 - 1


class Account:
    """How many connections one worker was given, and how many of them it has begun and handled.

    It owns copies of the connections that the worker has not begun. Counts are as the master has
    last read them.
    """

    def __init__(self, counters: Counters, channel: Channel, most: float) -> None:
        """Borrows counters and channel. most: after so many connections the worker is used up."""
        self._channel = channel
        # Not from counters.words: the garbage collector may clear that memoryview before this
        # object, and then Python 3.11 crashes.
        self._words = ffi.from_buffer("unsigned int[]", counters.shared)
        self.record: Any = ffi.gc(ffi.new("struct fdp_worker *"), lib.fdp_free_worker)
        self.record.outbox = end_of(channel).outbox
        self.record.words = self._words
        self.set_most(most)

    def set_most(self, most: float) -> None:
        self.record.most = int(min(most, _MOST))

    def set_capacity(self, capacity: int) -> None:
        """Sets how many connections the worker may have in hand. With 0 it gets no more."""
        record = self.record
        record.capacity = capacity = min(capacity, _LARGEST_CAPACITY)
        record.room = max(0, capacity - (record.given + record.taken - record.handled))

    @property
    def is_open(self) -> bool:
        """Whether the worker gets connections."""
        return bool(self.record.capacity)

    @property
    def has_copies(self) -> bool:
        """Whether the worker has not begun some of the connections that it was given."""
        return bool(self.record.copies.count)

    @property
    def given(self) -> int:
        """How many connections were given to it. Those that it has taken do not count."""
        return int(self.record.given)

    @property
    def taken(self) -> int:
        """How many of the connections that were offered to all workers it has taken."""
        return int(self.record.taken)

    @property
    def begun(self) -> int:
        """How many connections it has begun. Those that it has taken count."""
        return int(self.record.begun + self.record.taken)

    @property
    def handled(self) -> int:
        return int(self.record.handled)

    @property
    def is_used_up(self) -> bool:
        """Whether it has got so many connections that it must be replaced."""
        return self.given + self.taken >= int(self.record.most)

    def close(self) -> None:
        """Closes the copies."""
        lib.fdp_free_worker(self.record)
