"""Counts workers that fail at start, so that the pool gives up after several in a row."""

import time
from collections.abc import Iterable

LIMIT = 5
"""The pool gives up when so many workers in a row have died at start, or before they began a
connection."""

STABLE_AFTER = 1.0
"""Seconds after which a ready, idle worker counts as started."""

_FIRST_DELAY = 0.05
"""Seconds until the second attempt. Each later delay is twice as long."""

_LONGEST_DELAY = 2.0
"""Seconds between two attempts at most. Only while other workers serve are there so many."""


class FailedStarts:
    """Counts failures in a row. The count starts again when a worker has begun a connection, or has
    been ready for STABLE_AFTER seconds.

    retry_at: no worker is started before this time, as time.monotonic.
    """

    def __init__(self) -> None:
        self.retry_at: float = 0.0
        self._in_a_row = self._begun = 0
        self._last_at = 0.0
        self._delay = _FIRST_DELAY

    def add(self, begun: int, ready_at: Iterable[float]) -> bool:
        """Counts a failure. Returns whether there are too many.

        begun: how many connections the workers have begun in all. ready_at: when each living worker
        became ready, as time.monotonic.
        """
        if self._delay_next(ready_at) or begun > self._begun:
            self._begun = begun
            self._in_a_row = 0
        self._in_a_row += 1
        return self._in_a_row >= LIMIT

    def postpone(self, ready_at: Iterable[float]) -> None:
        """Called if the system could not start a process and other workers serve: this does not
        count."""
        self._delay_next(ready_at)

    def _delay_next(self, ready_at: Iterable[float]) -> bool:
        """Sets retry_at. Returns whether a worker that started since the last failure is stable.

        Connections that other workers begin meanwhile say nothing about the next start. So the
        delay grows in a busy pool too.
        """
        now = time.monotonic()
        is_stable = any(self._last_at < at <= now - STABLE_AFTER for at in ready_at)
        if is_stable:
            self._delay = _FIRST_DELAY
        self._last_at = now
        self.retry_at = now + self._delay
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        return is_stable

    def reset(self) -> None:
        self._in_a_row = 0
        self._delay = _FIRST_DELAY
