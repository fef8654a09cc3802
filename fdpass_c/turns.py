"""The lock by which threads take turns at one direction of a Channel."""

import sys
import threading

if sys.version_info[:2] == (3, 14):
    import _thread

    class Turn(_thread.RLock):
        """A lock that no signal handler can leave taken.

        Python 3.14 may run a handler between a lock's own __enter__ and the block; if it raises,
        nobody gives the lock back (CPython's issue 148874). It runs none after the iterator of a
        for loop, nor on the way out of an __enter__ that is written in Python.

        An RLock, because that can be subclassed; but who has the turn does not get it again.
        """

        __slots__ = ()

        def __enter__(self) -> bool:
            if self._is_owned():
                raise RuntimeError("a signal handler uses what it has interrupted")
            for _ in map(self.acquire, (True,)):
                break
            return True

else:
    Turn = threading.Lock
