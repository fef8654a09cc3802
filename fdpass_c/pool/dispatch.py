"""Distributes connections among the workers."""

import errno
import os
import selectors
import time
from collections.abc import Sequence

from fdpass_c.errors import describe_errno
from fdpass_c.pool.accepting import RETRY_DELAY, Acceptors
from fdpass_c.pool.log import logger
from fdpass_c.pool.rounds import Rounds
from fdpass_c.pool.worker_process import WorkerProcess

_LOG_INTERVAL = 10.0
"""Seconds in which the same error is not logged again."""


class Dispatcher:
    """Runs the master's rounds, and handles the errors that they find."""

    def __init__(
        self,
        rounds: Rounds,
        acceptors: Acceptors,
        workers: Sequence[WorkerProcess],
        selector: selectors.BaseSelector,
    ) -> None:
        """workers: the living workers, a list that the supervisor keeps up to date."""
        self._rounds = rounds
        self._acceptors = acceptors
        self._workers = workers
        self._selector = selector
        self._retry_at = 0.0
        self._quiet_until: dict[int, float] = {}

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
            # It is no longer watched where it has closed the channel, and has not ended yet.
            if worker.channel.unsent and worker.channel in self._selector.get_map():
                key = self._selector.get_key(worker.channel)
                self._selector.modify(worker.channel, both, key.data)
