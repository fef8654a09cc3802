"""Who comes next at one direction of a Channel while a thread is inside the C core."""

import contextlib
import threading
from collections import deque
from typing import Any

# A wake-up can be lost, to a signal handler that raises; then somebody looks again after so long.
_AT_MOST = 0.05


class Turns(deque[Any]):
    """Threads that were told that another one is busy: a lock each, in the order they came."""

    def wait(self) -> None:
        """Returns once it is worth another try."""
        # Looked up late: gevent replaces it, and a lock from before would stop all greenlets.
        lock = threading.Lock()
        lock.acquire()
        self.append(lock)
        try:
            lock.acquire(timeout=_AT_MOST)
        finally:
            self.remove(lock)

    def pass_on(self) -> None:
        """Wakes who has waited longest."""
        with contextlib.suppress(IndexError, RuntimeError):  # Gone, or woken already.
            self[0].release()
