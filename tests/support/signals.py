"""Signal handlers, and exceptions that they raise."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType


@contextmanager
def handling(signum: int, handler: Callable[[], object]) -> Iterator[None]:
    """Calls handler at every signum while the block runs."""
    before = signal.signal(signum, lambda _signum, _frame: handler())
    try:
        yield
    finally:
        signal.signal(signum, before)


def interrupt_main_thread() -> None:
    """Sends the main thread a SIGUSR1, so that its system call ends in EINTR."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGUSR1)


class Interruption(Exception):
    """Raised by a handler."""


def interrupt() -> None:
    raise Interruption


def interrupt_call(
    module: ModuleType,
    number: int,
    function: Callable[[], object],
    kind: type[Exception] = Interruption,
) -> bool:
    """Runs function; raises kind when the number-th call out of module has returned.

    That is where Python runs signal handlers. Returns whether there were as many calls.
    """
    left = number

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal left
        caller = frame.f_back if event == "return" else frame
        inside = caller is not None and caller.f_code.co_filename == module.__file__
        if inside and event in ("c_return", "return"):
            left -= 1
            if left == 0:
                raise kind

    sys.setprofile(profile)
    try:
        function()
    except kind:
        return True
    finally:
        sys.setprofile(None)
    return False
