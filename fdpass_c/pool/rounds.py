"""The master's rounds: the C core accepts connections, passes them on, and waits for more."""

import errno
import math
import selectors
from collections.abc import Sequence
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.pool.accepting import Acceptor
from fdpass_c.pool.connections import Account
from fdpass_c.pool.offers import Offers
from fdpass_c.pool.wakeup import Wakeup


class Rounds:
    """Gives each connection to the worker with the fewest, until there is something else to do.

    found: a struct fdp_rounds *, whose fields say what that is.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        wakeup: Wakeup,
        offers: Offers | None,
        nonblocking: bool,
    ) -> None:
        """Borrows its arguments. nonblocking: the mode of the accepted sockets."""
        self.found: Any = ffi.gc(ffi.new("struct fdp_rounds *"), lib.fdp_free_rounds)
        self._offers = offers
        self._selector = selector
        self._wakeup = wakeup
        self._wanted = ffi.from_buffer("unsigned char[]", wakeup.shared)
        self._accounts: list[Account] = []
        self._acceptors: Sequence[Acceptor] = ()
        self.found.wakeup = wakeup.fileno()
        self.found.wanted = self._wanted
        self.found.offers = offers.record if offers is not None else ffi.NULL
        # gevent's selector has no descriptor.
        self.found.selector = selector.fileno() if hasattr(selector, "fileno") else -1
        self.found.listeners.nonblocking = nonblocking

    def listen(self, acceptors: Sequence[Acceptor]) -> None:
        """From now on, connections are accepted at these listeners, and at no others."""
        self._acceptors = acceptors
        self._listeners = ffi.new("struct fdp_listener *[]", [one.record for one in acceptors])
        self.found.listeners.items = self._listeners
        self.found.listeners.count = len(acceptors)

    @property
    def begun(self) -> int:
        """How many connections the workers have begun, in all."""
        return int(self.found.begun)

    @property
    def waiting(self) -> int:
        """How many accepted connections were not given to a worker, or taken by one, yet."""
        return int(lib.fdp_try_count_waiting(self.found))

    def drop_waiting(self) -> None:
        """Closes the connections that waiting counts."""
        lib.fdp_drop_waiting(self.found)

    def add(self, account: Account) -> None:
        """From now on, the worker gets connections if it has room."""
        self._accounts.append(account)
        self._point_to_workers()

    def take_back(self, account: Account) -> int:
        """Puts the connections that a worker has not begun back at the front of the queue, and
        returns how many. The worker is dead, or begins no more connections. May be repeated."""
        if (count := lib.fdp_return_copies(self.found, account.record)) < 0:
            raise MemoryError
        return int(count)

    def remove(self, account: Account) -> int:
        """Calls take_back, and forgets the worker. Returns how many connections were taken back.
        May be repeated."""
        count = self.take_back(account)
        if account in self._accounts:
            self._accounts.remove(account)
        self._point_to_workers()
        return count

    def _point_to_workers(self) -> None:
        self._workers = ffi.new("struct fdp_worker *[]", [one.record for one in self._accounts])
        self.found.workers = self._workers
        self.found.worker_count = len(self._accounts)

    def run(self, seconds: float, is_paused: bool) -> None:
        """Accepts connections and passes them on, until there is something else to do.

        It returns after so many seconds, when the selector reports something, when a signal has
        come, or when found has news. is_paused: it accepts nothing and passes nothing on, until a
        worker has begun a connection. MemoryError: there is no memory.
        """
        self.found.is_paused = is_paused
        result = lib.fdp_run_rounds(self.found, math.ceil(seconds * 1000))
        if result == -errno.EAGAIN:
            self._wait(seconds)
        elif result < 0:
            raise MemoryError

    def _wait(self, seconds: float) -> None:
        """Waits in a selector that has no descriptor, which the core therefore cannot poll. It also
        waits for everything for which the core would wait."""
        found = self.found
        watched: list[Acceptor | Wakeup] = [self._wakeup]
        watched += [one for one in self._acceptors if one.record.state == lib.FDP_WATCHED]
        for one in watched:
            self._selector.register(one, selectors.EVENT_READ)
        try:
            self._selector.select(min(seconds, found.wait / 1000) if found.wait >= 0 else seconds)
        finally:
            for one in watched:
                self._selector.unregister(one)

    def close_done(self) -> None:
        """Closes the copies that are no longer needed."""
        lib.fdp_close_connections(ffi.addressof(self.found, "done"))

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        if self._offers is not None:
            self._offers.close_in_child()
        self.close_done()
        lib.fdp_close_connections(ffi.addressof(self.found, "waiting"))
        for account in self._accounts:
            account.close()
