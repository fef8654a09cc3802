"""What a handler asks its worker, whether that is to leave, and tells it, that it does not hang."""

import asyncio
import os

from fdpass_c.pool.tally import Tally


class _Asked:
    """This process, once it is a worker."""

    tally: Tally | None = None
    master = 0
    event: asyncio.Event | None = None


def is_leaving() -> bool:
    """Whether this worker gets no more connections: the pool stops, or replaces it.

    A handler that keeps connections alive ends them then, after the request in hand; a worker
    that has not finished in time (drain) is killed. From any thread; False in a process that is
    no worker.
    """
    tally = _Asked.tally
    return tally is not None and (tally.is_leaving or os.getppid() != _Asked.master)


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
    if _Asked.tally is not None:
        _Asked.tally.beat()


def become_worker(tally: Tally, master: int) -> None:
    """In a new worker; master: the pid of the process that forked it."""
    _Asked.tally = tally
    _Asked.master = master


def make_event() -> asyncio.Event:
    """In a worker's event loop: what leaving_event gives from now on."""
    _Asked.event = asyncio.Event()
    return _Asked.event
