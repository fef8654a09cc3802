"""Signals of the master: they are queued, and wake it."""

import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from fdpass_c.pool.wakeup import Wakeup

_COUNTED = (signal.SIGTERM, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU)
"""A second one means more than the first."""

_STOPS = (signal.SIGTERM, signal.SIGINT)

_ECHO = 0.5
"""Seconds after a signal that stops the pool in which the same signal is the same wish: timeout(1)
and others send it to the process and to its group, so that it comes twice."""

MASTERS_SIGNALS = (*_COUNTED, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """The signals that came and were not handled yet."""

    def __init__(self) -> None:
        self._queue: deque[int] = deque()
        self._echoes_until: dict[int, float] = {}
        self._wakeup: Wakeup | None = None

    def add(self, signum: int) -> None:
        """Queues a signal as if it had come. In any thread or signal handler."""
        self._queue.append(signum)
        if wakeup := self._wakeup:
            wakeup.wake()

    def _handle(self, signum: int, _frame: object) -> None:
        now = time.monotonic()
        if signum in _STOPS:
            if now < self._echoes_until.get(signum, 0.0):
                return
            self._echoes_until[signum] = now + _ECHO
        self._queue.append(signum)

    def take(self) -> list[int]:
        """Takes the signals that came until now; of each that is not in _COUNTED only the first.

        So many of these in a short time are handled once per round.
        """
        taken = [self._queue.popleft() for _ in range(len(self._queue))]
        return [
            signum
            for position, signum in enumerate(taken)
            if signum in _COUNTED or taken.index(signum) == position
        ]

    @contextmanager
    def handling(self) -> Iterator[Wakeup]:
        """Queues MASTERS_SIGNALS and SIGCHLD during the block. Only in the main thread."""
        wakeup = Wakeup()
        handlers = {}
        previous_fd = -1
        try:
            previous_fd = signal.set_wakeup_fd(wakeup.writer, warn_on_full_buffer=False)
            for signum in (*MASTERS_SIGNALS, signal.SIGCHLD):
                handlers[signum] = signal.signal(signum, self._handle)
            self._wakeup = wakeup
            yield wakeup
        finally:
            self._wakeup = None
            for signum, handler in handlers.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            if handlers:
                signal.set_wakeup_fd(previous_fd)
            wakeup.close()
            self._queue.clear()
            self._echoes_until.clear()
