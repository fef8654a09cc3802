"""Distributes connections among the workers."""

import selectors
import time
from collections.abc import Sequence

from fdpass_c.errors import describe_errno
from fdpass_c.pool.accepting import RETRY_DELAY, Acceptors
from fdpass_c.pool.connections import Accounts, Connections
from fdpass_c.pool.log import logger
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.worker_process import WorkerProcess

_SHORTEST_POLL, _LONGEST_POLL = 0.005, 1.0
"""Seconds after which the master reads the counters even if it was not woken."""

_QUIET = 10.0
"""Seconds in which the same error is not logged again."""


class Dispatcher:
    """Accepts as many connections as there is room for, and gives each to the worker with the
    fewest.

    waiting: connections accepted and not given to a worker yet. begun: how many the workers have
    begun, in all. due_at: when distribute must be called if nothing happens before, as
    time.monotonic.
    """

    def __init__(
        self,
        acceptors: Acceptors,
        workers: Sequence[WorkerProcess],
        wakeup: Wakeup,
        selector: selectors.BaseSelector,
    ) -> None:
        """workers: the living ones, a list that the supervisor keeps up to date."""
        self.begun: int = 0
        self.due_at: float = 0.0
        self._accounts = Accounts()
        self.waiting: Connections = self._accounts.waiting
        self._acceptors = acceptors
        self._workers = workers
        self._wakeup = wakeup
        self._selector = selector
        self._retry_at = 0.0
        self._quiet_until: dict[int, float] = {}
        self._poll_interval = _SHORTEST_POLL
        self._holds_copies = self._needs_supervisor = False

    def distribute(self) -> bool:
        """Returns whether the supervisor must check: a worker was given its last connection, or a
        waiting connection was given away and no more are accepted."""
        self._needs_supervisor = False
        now = time.monotonic()
        is_full = self._run_round(now)
        if is_full != self._wakeup.wanted:
            self._wakeup.wanted = is_full
            if is_full:
                # A worker may have finished just before it could see the flag.
                is_full = self._run_round(now)
        self._acceptors.unwatch()
        self._set_due_at(now, is_full)
        return self._needs_supervisor

    def _run_round(self, now: float) -> bool:
        """One round; returns whether there is no room for more."""
        room = self._read()
        if now < self._retry_at:
            return True
        waiting = len(self.waiting)
        self._acceptors.resume(now)
        if room > waiting and self._acceptors.ready:
            waiting += self._accept(room - waiting)
        if waiting and room:
            self._pass_on()
        return room <= waiting

    def _read(self) -> int:
        """Reads the workers' counters; returns how many connections they have room for."""
        self._accounts.read()
        found = self._accounts.round
        self.begun += found.begun
        self._holds_copies = bool(found.has_copies)
        return int(found.room)

    def add(self, worker: WorkerProcess) -> None:
        """From now on the worker gets connections, if it has room."""
        self._accounts.add(worker.account)

    def remove(self, worker: WorkerProcess) -> int:
        """Queues what a dead worker had not begun, before all later ones; returns how many."""
        before = len(self.waiting)
        self._accounts.remove(worker.account)
        self.begun += self._accounts.round.begun
        return len(self.waiting) - before

    def close_done(self) -> None:
        """Closes the copies that are no longer needed."""
        self._accounts.close_done()

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        self._accounts.close_in_child()

    def _set_due_at(self, now: float, is_full: bool) -> None:
        self.due_at = float("inf") if is_full else self._acceptors.due_at
        if self._retry_at > now:
            self.due_at = self._retry_at
        elif self._acceptors.ready and not is_full:
            self.due_at = 0.0
        if self._holds_copies or is_full:
            # Usually a worker wakes the master first. If not, the master polls at growing
            # intervals.
            self.due_at = min(self.due_at, now + self._poll_interval)
            self._poll_interval = min(2 * self._poll_interval, _LONGEST_POLL)

    def _accept(self, room: int) -> int:
        before = len(self.waiting)
        try:
            self._acceptors.accept(room, self.waiting)
        except OSError as error:
            self._pause(error.errno or 0, f"cannot accept: {error.strerror}")
        return len(self.waiting) - before

    def _pause(self, code: int, reason: str) -> None:
        """code: the errno."""
        now = time.monotonic()
        self._retry_at = now + RETRY_DELAY
        if now >= self._quiet_until.get(code, 0.0):
            self._quiet_until[code] = now + _QUIET
            logger.warning("%s; trying again every %s s", reason, RETRY_DELAY)

    def _pass_on(self) -> None:
        self._poll_interval = _SHORTEST_POLL
        self._holds_copies = True
        if not self._acceptors.is_open:
            self._needs_supervisor = True
        found = self._accounts.round
        while self._accounts.deal():
            if found.used_up:
                self._needs_supervisor = True
            if found.unsent:
                self._watch_unsent()
            if found.error or not found.room or not self.waiting:
                break
        if found.error:
            pid, reason = self._workers[found.failed].pid, describe_errno(-found.error)
            self._pause(-found.error, f"cannot pass connections to worker {pid}: {reason}")

    def _watch_unsent(self) -> None:
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        for worker in self._workers:
            if worker.channel.unsent:
                key = self._selector.get_key(worker.channel)
                self._selector.modify(worker.channel, both, key.data)
