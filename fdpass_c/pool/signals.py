"""The signals of the master, which are queued and wake it."""

import operator
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from fdpass_c.pool.wakeup import Wakeup

_STOPS = (signal.SIGTERM, signal.SIGINT)

_COUNTED = (signal.SIGTTIN, signal.SIGTTOU)
"""Each of these counts, even if several arrive at once."""

_ECHO = 0.5
"""Seconds in which a second TERM or INT counts as the first one: timeout(1) and others send it to
the process and to its group, so that it arrives twice."""

MASTERS_SIGNALS = (*_STOPS, *_COUNTED, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """The signals that came and were not handled yet.

    The handlers are methods of C, here and in ignore. A function of Python can be interrupted by
    the next signal before its first bytecode, and its handler by the one after that: a flood of
    signals can end in a RecursionError.
    """

    def __init__(self) -> None:
        self._asked: deque[int] = deque()
        # For each signal an element for each time it came: what list.insert(signum, frame) adds.
        self._came: dict[int, list[object]] = {
            signum: [] for signum in (*MASTERS_SIGNALS, signal.SIGCHLD)
        }
        self._echoes_until: dict[int, float] = {}
        self._wakeup: Wakeup | None = None

    def add(self, signum: int) -> None:
        """Queues what the signal asks for, and always counts. In any thread or signal handler."""
        self._asked.append(signum)
        if wakeup := self._wakeup:
            wakeup.wake()

    def take(self) -> list[int]:
        """Takes what was added, and the signals that came until now.

        A signal that came more than once is taken once, unless it is in _COUNTED.
        """
        if not (self._asked or any(self._came.values())):
            return []
        taken = [self._asked.popleft() for _ in range(len(self._asked))]
        for signum, came in self._came.items():
            if count := len(came):
                del came[:count]
                if signum in _COUNTED:
                    taken += [signum] * count
                elif signum not in _STOPS or self._is_new(signum):
                    taken.append(signum)
        return taken

    def _is_new(self, signum: int) -> bool:
        now = time.monotonic()
        if now < self._echoes_until.get(signum, 0.0):
            return False
        self._echoes_until[signum] = now + _ECHO
        return True

    @contextmanager
    def handling(self) -> Iterator[Wakeup]:
        """Notes MASTERS_SIGNALS and SIGCHLD during the block, even if the parent process has
        blocked them. Only in the main thread."""
        wakeup = Wakeup()
        handlers = {}
        blocked: set[int] = set()
        previous_fd = -1
        try:
            previous_fd = signal.set_wakeup_fd(wakeup.writer.fileno(), warn_on_full_buffer=False)
            for signum, came in self._came.items():
                handlers[signum] = signal.signal(signum, came.insert)
            blocked |= signal.pthread_sigmask(signal.SIG_UNBLOCK, self._came) & {*self._came}
            self._wakeup = wakeup
            yield wakeup
        finally:
            self._wakeup = None
            signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
            for signum, handler in handlers.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            if handlers:
                signal.set_wakeup_fd(previous_fd)
            wakeup.close()
            self._asked.clear()
            for came in self._came.values():
                came.clear()
            self._echoes_until.clear()


def terminate_children() -> None:
    """From now on TERM ends the processes that this one forks, unless they handle it. The same
    holds for those that it executes."""
    kept = threading.local()

    def block() -> None:
        kept.mask = None
        if signal.getsignal(signal.SIGTERM) is operator.is_:
            # Otherwise a TERM that arrives before the child has reset the handler is lost.
            kept.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def unblock() -> None:
        if kept.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept.mask)

    def reset() -> None:
        if kept.mask is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def ignore(signum: int) -> None:
    """Installs a handler that does nothing. With SIG_IGN, the signal would stay ignored in executed
    programs."""
    signal.signal(signum, operator.is_)
