"""Signals that end a command, the one for time limits, and those that programs inherit."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGTERM, signal.SIGHUP)

# Python ignores them (man 7 signal has SIGXFZ on some systems).
_IGNORED = ("SIGPIPE", "SIGXFZ", "SIGXFSZ")

# A signal that arrives just before a system call does not end it, so it is repeated.
_REPEAT = 0.1


class Ended(BaseException):
    """A signal arrived that ends this process after cleaning up."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def die(self) -> None:
        """Ends this process by the signal, as if unhandled. Returns in the first process of a
        container."""
        signal.signal(self.signum, signal.SIG_DFL)
        signal.raise_signal(self.signum)


@contextmanager
def ending() -> Iterator[None]:
    """TERM and HUP raise Ended in the block, unless the caller ignores them, as nohup does."""
    handled = [signum for signum in _ENDING if signal.getsignal(signum) == signal.SIG_DFL]

    def end(signum: int, _frame: FrameType | None) -> NoReturn:
        # Only the first counts: timeout(1) sends two.
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(signum)

    for signum in handled:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum in handled:
            if signal.getsignal(signum) == end:
                signal.signal(signum, signal.SIG_DFL)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError in the block after that many seconds; None is no limit.

    Bytes that a system call has just read are lost.
    """
    if seconds is None:
        yield
        return

    def end(_signum: int, _frame: FrameType | None) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise TimeoutError(errno.ETIMEDOUT, "timed out")

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), _REPEAT)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def restore_for_program() -> None:
    """Restores the signals that Python ignores, before another program is executed."""
    for name in _IGNORED:
        if signum := getattr(signal, name, None):
            signal.signal(signum, signal.SIG_DFL)
