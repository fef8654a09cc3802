"""How a handler asks whether its worker is to end, and says that it makes progress."""

import asyncio
import os

from fdpass_c._native import lib
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.wakeup import Wakeup


class _ThisWorker:
    """Facts about this process, set if it is a worker."""

    counters: Counters | None = None
    pid = 0
    master = 0
    event: asyncio.Event | None = None


def is_leaving() -> bool:
    """Whether the worker in which it is called is about to end.

    That is so if the pool stops or replaces the worker, or if the master has died. The worker gets
    no more connections, except those that a stopping pool has already accepted. A handler that
    keeps connections alive should then close each one after the current request: a worker that has
    not finished after drain seconds is killed. It may be called in any thread.

    Returns:
        True in a worker that is to end, and in a process that it has forked. False in any other
            worker, and outside of workers.
    """
    counters = _ThisWorker.counters
    if counters is None:
        return False
    return counters.is_leaving or (is_worker() and os.getppid() != _ThisWorker.master)


def leaving_event() -> asyncio.Event:
    """Returns an event that is set when is_leaving() becomes true, for coroutine functions.

    A handler can wait for it and for its client at the same time.

    Returns:
        An event of the worker's event loop, the same for every call, which is set when the worker
            gets no more connections. Outside of a worker that runs coroutines, a new event, which
            is never set.
    """
    return _ThisWorker.event or asyncio.Event()


def note_progress() -> None:
    """Tells the pool that this worker makes progress, although a connection takes long.

    A plain function calls it if one connection can take longer than the timeout of Pool. In an
    event loop it is not needed. Outside of workers it does nothing. It may be called in any thread.
    """
    if _ThisWorker.counters is not None:
        _ThisWorker.counters.heartbeat()


def become_worker(counters: Counters, master: int) -> None:
    """Called in a new worker; master is the pid of the process that forked it."""
    _ThisWorker.counters = counters
    _ThisWorker.pid = os.getpid()
    _ThisWorker.master = master
    # Until become_ready, this process does not read the channel, and so does not notice if the
    # master dies. Therefore the kernel kills it then.
    lib.fdp_end_with_parent(True)
    if os.getppid() != master:
        os._exit(1)


def is_worker() -> bool:
    """Whether this process is a worker, and not one that a worker has forked."""
    return os.getpid() == _ThisWorker.pid


def become_ready(counters: Counters, wakeup: Wakeup) -> None:
    """Called in a worker that has started. From now on it gets connections, and it finishes them
    even if the master dies."""
    lib.fdp_end_with_parent(False)
    counters.start()
    wakeup.wake()


def begin_no_more(counters: Counters, wakeup: Wakeup) -> None:
    """Called in a worker that ends. It gets no more connections, and other workers get those that
    it was given and has not begun."""
    counters.leave()
    if not counters.is_ending:
        counters.end()
        wakeup.wake()


def make_event() -> asyncio.Event:
    """Called in a worker's event loop: makes the event that leaving_event returns."""
    _ThisWorker.event = asyncio.Event()
    return _ThisWorker.event
