"""The order in which threads use one direction of a Channel."""

import contextlib
import threading
from collections import deque
from typing import Any

# A wake-up can be lost, to a signal handler that raises; then somebody looks again after so long.
_AT_MOST = 0.05


class Turns(deque[Any]):
    """Threads that wait while another is inside the C core: a lock each, in order of arrival."""

    def wait(self) -> None:
        """Returns when it is worthwhile to try again."""
        # Looked up late: gevent replaces it, and a lock from before would stop all greenlets.
        lock = threading.Lock()
        lock.acquire()
        self.append(lock)
        try:
            lock.acquire(timeout=_AT_MOST)
        finally:
            self.remove(lock)

    def pass_on(self) -> None:
        """Wakes the thread that has waited longest."""
        with contextlib.suppress(IndexError, RuntimeError):  # Gone, or woken already.
            self[0].release()
