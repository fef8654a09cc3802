"""The signals of the master: they are queued, and wake the master."""

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
"""Each of these has an effect, even if several arrive at once."""

_DUPLICATE_WINDOW = 0.5
"""Seconds in which a second TERM or INT is ignored: timeout(1) and others send the signal to the
process and to its group, so that it arrives twice."""

MASTERS_SIGNALS = (*_STOPS, *_COUNTED, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """The signals that came and were not handled yet.

    The handlers, here and in ignore, are methods that are written in C. A handler in Python can be
    interrupted by the next signal before its first bytecode, and that signal's handler by the one
    after it. So many signals at once could end in a RecursionError.
    """

    def __init__(self) -> None:
        self._added: deque[int] = deque()
        # For each signal, a list with one element for each time that the signal came. The handler
        # is the list's method insert, which is called as insert(signum, frame).
        self._came: dict[int, list[object]] = {
            signum: [] for signum in (*MASTERS_SIGNALS, signal.SIGCHLD)
        }
        self._duplicates_until: dict[int, float] = {}
        self._wakeup: Wakeup | None = None

    def add(self, signum: int) -> None:
        """Queues a signal as if it had come, but never ignores it as a duplicate. May be called in
        any thread and in a signal handler."""
        self._added.append(signum)
        if wakeup := self._wakeup:
            wakeup.wake()

    def take(self) -> list[int]:
        """Removes and returns the signals that were added, and those that came until now.

        A signal that came more than once is returned once, unless it is in _COUNTED.
        """
        if not (self._added or any(self._came.values())):
            return []
        taken = [self._added.popleft() for _ in range(len(self._added))]
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
        if now < self._duplicates_until.get(signum, 0.0):
            return False
        self._duplicates_until[signum] = now + _DUPLICATE_WINDOW
        return True

    @contextmanager
    def handling(self) -> Iterator[Wakeup]:
        """Queues MASTERS_SIGNALS and SIGCHLD during the block, even if the parent process has
        blocked them. To be called in the main thread."""
        wakeup = Wakeup()
        handlers = {}
        blocked: set[int] = set()
        previous_fd = -1
        try:
            previous_fd = _set_wakeup_fd(wakeup.writer.fileno())
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
            self._added.clear()
            for came in self._came.values():
                came.clear()
            self._duplicates_until.clear()


def _set_wakeup_fd(fd: int) -> int:
    try:
        return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except ValueError:  # Python knows better than threading, of which gevent replaces parts.
        raise ValueError("serve() handles signals: call it in the main thread") from None


def terminate_children() -> None:
    """From now on, SIGTERM ends the processes that this process forks and the programs that it
    executes, unless they handle the signal."""
    kept = threading.local()

    def block() -> None:
        kept.mask = None
        if signal.getsignal(signal.SIGTERM) is operator.is_:
            # A SIGTERM that arrives in the child before the handler is reset would be lost.
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
    """Installs a handler that does nothing. With SIG_IGN, programs that this process executes would
    ignore the signal too."""
    signal.signal(signum, operator.is_)
