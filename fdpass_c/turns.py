"""The order in which threads use one direction of a Channel."""

import contextlib
import threading
from collections import deque
from typing import Any

# A signal handler that raises an exception can lose a wake-up. Seconds until another try then.
_AT_MOST = 0.05


class Turns(deque[Any]):
    """Threads that wait while another is inside the C core: a lock each, in order of arrival."""

    def wait(self) -> None:
        """Returns when it is worthwhile to try again."""
        # Looked up here: gevent replaces it, and the original lock would block all greenlets.
        lock = threading.Lock()
        lock.acquire()
        try:
            self.append(lock)
            lock.acquire(timeout=_AT_MOST)
        finally:
            if lock in self:  # Not if a handler raised before.
                self.remove(lock)

    def pass_on(self) -> None:
        """Wakes the thread that has waited longest."""
        with contextlib.suppress(IndexError, RuntimeError):  # It has ended, or was woken already.
            self[0].release()
