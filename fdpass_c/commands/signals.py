"""Signals that end a command, SIGALRM for time limits, and signals that programs inherit."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What handles them if neither the parent process nor a program has changed that.
_USUAL = (signal.SIG_DFL, signal.default_int_handler)

# Python ignores these signals where they exist (SIGXFZ exists on some systems only).
_IGNORED = ("SIGPIPE", "SIGXFZ", "SIGXFSZ")

# Seconds between two SIGALRM after a time limit. The signal is repeated because it does not
# interrupt a system call if it arrives just before the call.
_REPEAT = 0.1


class Ended(BaseException):
    """Raised by a signal that ends this process, so that it can clean up before."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def die(self) -> None:
        """Ends this process by the signal, as if it were not handled. Returns only in the first
        process of a container, which the signal does not end."""
        signal.signal(self.signum, signal.SIG_DFL)
        signal.raise_signal(self.signum)


@contextmanager
def ending() -> Iterator[None]:
    """Makes the first SIGTERM or SIGHUP raise Ended in the block, or the first SIGINT a
    KeyboardInterrupt. The later ones do nothing, also after the block, so that they interrupt
    neither the cleaning up nor the exit: timeout(1) sends two. A signal that is ignored stays
    ignored, as under nohup."""
    usual = {signum: signal.getsignal(signum) for signum in _ENDING}
    handled = [signum for signum, handler in usual.items() if handler in _USUAL]
    came = False

    def end(signum: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came:
            return
        came = True
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Ended(signum)

    for signum in handled:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum in handled:
            if not came and signal.getsignal(signum) == end:
                signal.signal(signum, usual[signum])


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises a TimeoutError in the block after so many seconds, or never if seconds is None.

    If it comes just after a system call has read bytes, they are lost.
    """
    if seconds is None:
        yield
        return

    def end(_signum: int, _frame: FrameType | None) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise TimeoutError(errno.ETIMEDOUT, "timed out")

    before = signal.signal(signal.SIGALRM, end)
    # The parent process may have blocked it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), _REPEAT)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def restore_for_program() -> None:
    """Restores the default of the signals that Python ignores, for a program that will be
    executed."""
    for name in _IGNORED:
        if signum := getattr(signal, name, None):
            signal.signal(signum, signal.SIG_DFL)
