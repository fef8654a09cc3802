"""Distributes connections among the workers."""

import errno
import os
import selectors
import time
from collections.abc import Sequence

from fdpass_c.errors import describe_errno
from fdpass_c.pool.accepting import RETRY_DELAY, Acceptors
from fdpass_c.pool.log import logger
from fdpass_c.pool.offers import Offers
from fdpass_c.pool.rounds import Rounds, Waiting
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.worker_process import WorkerProcess

_LOG_INTERVAL = 10.0
"""Seconds in which the same error is not logged again."""


class Dispatcher:
    """Accepts as many connections as there is room for, and gives each to the worker with the
    fewest.

    waiting: connections accepted and not given to a worker, or taken by one, yet.
    """

    def __init__(
        self,
        acceptors: Acceptors,
        workers: Sequence[WorkerProcess],
        wakeup: Wakeup,
        selector: selectors.BaseSelector,
        offers: Offers | None,
    ) -> None:
        """workers: the living ones, a list that the supervisor keeps up to date. offers: None if
        they take more than one at a time."""
        self._rounds = Rounds(selector, wakeup, offers, acceptors.nonblocking)
        self.waiting: Waiting = self._rounds.waiting
        self._acceptors = acceptors
        self._workers = workers
        self._selector = selector
        self._retry_at = 0.0
        self._quiet_until: dict[int, float] = {}

    @property
    def begun(self) -> int:
        """How many connections the workers have begun, in all."""
        return int(self._rounds.found.begun)

    def distribute(self, until: float) -> bool:
        """Distributes connections until there is something else to do, or until that time.

        Returns whether the supervisor must check, because a worker was given its last connection,
        or because a waiting connection was given away after accepting has ended.
        """
        now = time.monotonic()
        until = min(until, self._acceptors.due_at)
        is_paused = now < self._retry_at
        if is_paused:
            until = min(until, self._retry_at)
        self._rounds.listen(self._acceptors.prepare(now))
        found = self._rounds.found
        try:
            self._rounds.run(max(0.0, until - now), is_paused)
            if not found.is_paused:
                self._retry_at = 0.0
        except MemoryError:
            self._pause_accepting(errno.ENOMEM)
        if found.has_errors and (code := self._acceptors.handle_errors()):
            self._pause_accepting(code)
        if found.unsent:
            self._watch_unsent()
        if found.error:
            pid, reason = self._workers[found.failed].pid, describe_errno(-found.error)
            self._pause(-found.error, f"cannot pass connections to worker {pid}: {reason}")
        return bool(found.used_up)

    def _pause_accepting(self, code: int) -> None:
        self._pause(code, f"cannot accept: {os.strerror(code)}")

    def _pause(self, code: int, reason: str) -> None:
        """code: the errno."""
        now = time.monotonic()
        self._retry_at = now + RETRY_DELAY
        if now >= self._quiet_until.get(code, 0.0):
            self._quiet_until[code] = now + _LOG_INTERVAL
            logger.warning("%s; trying again every %s s", reason, RETRY_DELAY)

    def _watch_unsent(self) -> None:
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        for worker in self._workers:
            if worker.channel.unsent:
                key = self._selector.get_key(worker.channel)
                self._selector.modify(worker.channel, both, key.data)

    def add(self, worker: WorkerProcess) -> None:
        """From now on the worker gets connections, if it has room."""
        self._rounds.add(worker.account)

    def take_back(self, worker: WorkerProcess) -> int:
        """Queues what a worker that ends has not begun, before all later ones; returns how many."""
        return self._rounds.take_back(worker.account)

    def remove(self, worker: WorkerProcess) -> int:
        """Queues what a dead worker had not begun, before all later ones; returns how many."""
        return self._rounds.remove(worker.account)

    def close_done(self) -> None:
        """Closes the copies that are no longer needed."""
        self._rounds.close_done()

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        self._rounds.close_in_child()
