"""Threads that wait, and the order in which they use one direction of a Channel."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, MutableSequence
from typing import Any, TypeVar

LOOK_AGAIN = 0.05
"""Seconds until another try where nothing wakes a thread. A signal handler that raises an exception
can lose a wake-up."""

Result = TypeVar("Result")


def while_listed(
    waiting: MutableSequence[Any], me: Any, call: Callable[..., Result], *arguments: Any
) -> Result:
    """Makes the call while me is in waiting, and returns its result.

    me is removed in the end, wherever a signal handler raises an exception.
    """
    try:
        waiting.append(me)
        return call(*arguments)
    finally:
        if me in waiting:  # It is not, if a signal handler raised an exception before the append.
            waiting.remove(me)


class Turns(deque[Any]):
    """Threads that wait while another is inside the C core: a lock each, in order of arrival."""

    def wait(self) -> None:
        """Returns when it is worthwhile to try again."""
        # Looked up at every call, because gevent may have replaced it: the original lock would
        # block all greenlets.
        lock = threading.Lock()
        lock.acquire()
        while_listed(self, lock, lock.acquire, True, LOOK_AGAIN)

    def pass_on(self) -> None:
        """Wakes the thread that has waited longest."""
        # IndexError: no thread waits any more. RuntimeError: it was woken already.
        with contextlib.suppress(IndexError, RuntimeError):
            self[0].release()
