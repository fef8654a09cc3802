"""Accepted connections that wait for a worker, and the connections of each worker.

All of it is in memory of the C core, which moves connections inside one call. So a signal handler
that raises an exception neither loses a connection nor gives it two owners.
"""

import os
import socket
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.channel import Channel
from fdpass_c.pool.counters import Counters

_accept_many = lib.fdp_accept_many
_try_read_workers = lib.fdp_try_read_workers
_try_deal = lib.fdp_try_deal

MOST_AT_ONCE = lib.FDP_MAX_FDS
"""Connections that one call accepts at most."""

_MOST = 2**64 - 1
_LARGEST_CAPACITY = 2**32 - 1


class Connections:
    """A queue that owns connections."""

    __slots__ = ("queue",)

    def __init__(self) -> None:
        self.queue: Any = ffi.gc(ffi.new("struct fdp_queue *"), lib.fdp_free_queue)

    def __len__(self) -> int:
        return int(self.queue.count)

    def accept(self, listener: socket.socket, origin: int, nonblocking: bool, most: int) -> int:
        """Appends the connections that wait at a listening socket, but not more than most.

        origin: the number of that socket, which is sent to the worker. Returns how many: fewer than
        most and MOST_AT_ONCE if there are no more, or after an error; if it lasts, the next call
        raises it. OSError: as from accept.
        """
        accepted: int = _accept_many(listener.fileno(), origin, nonblocking, most, self.queue)
        if accepted < 0:
            raise OSError(-accepted, os.strerror(-accepted))
        return accepted

    def close(self) -> None:
        """Closes all. It may be used again."""
        lib.fdp_close_connections(self.queue)


class Account:
    """What a worker was given, with copies of the connections that it has not begun."""

    def __init__(self, counters: Counters, channel: Channel, most: float) -> None:
        """Borrows both. most: after how many it is used up."""
        self._channel = channel
        # Not from a memoryview, which the garbage collector may clear first (Python 3.11 crashes).
        self._words = ffi.from_buffer("unsigned int[]", counters.shared)
        self.record: Any = ffi.gc(ffi.new("struct fdp_worker *"), lib.fdp_free_worker)
        self.record.outbox = channel.outbox
        self.record.words = self._words
        self.set_most(most)

    def set_most(self, most: float) -> None:
        self.record.most = int(min(most, _MOST))

    def set_capacity(self, capacity: int) -> None:
        """Sets how many it may have in hand from now on. With 0 it gets no more."""
        record = self.record
        record.capacity = capacity = min(capacity, _LARGEST_CAPACITY)
        record.room = max(0, capacity - (record.given - record.handled))

    @property
    def given(self) -> int:
        return int(self.record.given)

    @property
    def begun(self) -> int:
        """As the master has last read it. So is handled."""
        return int(self.record.begun)

    @property
    def handled(self) -> int:
        return int(self.record.handled)

    @property
    def is_used_up(self) -> bool:
        return bool(self.record.given >= self.record.most)

    @property
    def room(self) -> int:
        """How many more it can be given now."""
        return int(self.record.room)

    @property
    def not_begun(self) -> int:
        """How many copies there are."""
        return int(self.record.copies.count)

    def close(self) -> None:
        """Closes the copies."""
        lib.fdp_free_worker(self.record)


class Accounts:
    """The accounts of all workers, and the connections that no worker was given yet.

    round: what the last read or deal has found, a struct fdp_round *. waiting: the connections.
    """

    def __init__(self) -> None:
        self.waiting: Connections = Connections()
        self.round: Any = ffi.new("struct fdp_round *")
        self._done = Connections()
        self._accounts: list[Account] = []
        self._pointers = _point_to([])

    def add(self, account: Account) -> None:
        self._accounts.append(account)
        self._pointers = _point_to(self._accounts)

    def remove(self, account: Account) -> None:
        """Queues the connections that the worker had not begun, before all later ones."""
        pointer = _point_to([account])
        _try_read_workers(pointer, 1, self._done.queue, self.round)
        copies = ffi.addressof(account.record, "copies")
        if lib.fdp_return_connections(copies, self.waiting.queue) < 0:
            raise MemoryError
        self._accounts.remove(account)
        self._pointers = _point_to(self._accounts)

    def read(self) -> None:
        """Reads the counters of the workers."""
        _try_read_workers(self._pointers, len(self._accounts), self._done.queue, self.round)

    def deal(self) -> int:
        """Gives waiting connections to the workers with the fewest in hand; returns how many."""
        given: int = _try_deal(self._pointers, len(self._accounts), self.waiting.queue, self.round)
        return given

    def close_done(self) -> None:
        """Closes the copies that are no longer needed."""
        if self._done:
            self._done.close()

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        self._done.close()
        self.waiting.close()
        for account in self._accounts:
            account.close()


def _point_to(accounts: list[Account]) -> Any:
    return ffi.new("struct fdp_worker *[]", [account.record for account in accounts])
