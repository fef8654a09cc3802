"""What a handler asks its worker, whether that is to leave, and tells it, that it does not hang."""

import asyncio
import os

from fdpass_c.pool.counters import Counters


class _Asked:
    """This process, once it is a worker."""

    counters: Counters | None = None
    master = 0
    event: asyncio.Event | None = None


def is_leaving() -> bool:
    """Whether this worker gets no more connections: the pool stops, or replaces it.

    A handler that keeps connections alive ends them then, after the request in hand; a worker
    that has not finished in time (drain) is killed. From any thread; False in a process that is
    no worker.
    """
    counters = _Asked.counters
    return counters is not None and (counters.is_leaving or os.getppid() != _Asked.master)


def leaving_event() -> asyncio.Event:
    """Set when is_leaving; for coroutine functions, which wait for it beside their client.

    In a process that is no worker of coroutines it is an event that is never set.
    """
    return _Asked.event or asyncio.Event()


def note_progress() -> None:
    """Tells the pool that this worker does not hang, though one connection takes long (timeout).

    For plain functions that keep connections alive, or work for long. In a process that is no
    worker it does nothing.
    """
    if _Asked.counters is not None:
        _Asked.counters.heartbeat()


def become_worker(counters: Counters, master: int) -> None:
    """In a new worker; master: the pid of the process that forked it."""
    _Asked.counters = counters
    _Asked.master = master


def make_event() -> asyncio.Event:
    """In a worker's event loop: what leaving_event gives from now on."""
    _Asked.event = asyncio.Event()
    return _Asked.event
