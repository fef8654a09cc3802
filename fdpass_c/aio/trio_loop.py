"""Waits in trio."""

import os
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from fdpass_c.aio.directions import CALLS, Direction
from fdpass_c.waiting import HasFileno

_checkpoint = trio.lowlevel.checkpoint_if_cancelled

sleep: Callable[[float], Coroutine[Any, Any, None]] = trio.sleep
current: Callable[[], trio.lowlevel.TrioToken] = trio.lowlevel.current_trio_token


def _do_nothing() -> None:
    """Given to run_sync_soon, which raises an error if the run is over."""


def watch(source: HasFileno, writes: bool) -> "TrioDirection":
    """See Loop.watch."""
    return TrioDirection(source, writes)


class TrioDirection(Direction):
    """One direction of a descriptor in the current run of trio.

    Trio watches the descriptor only while a task waits for it.
    """

    def __init__(self, source: HasFileno, writes: bool) -> None:
        super().__init__(trio.Event)
        self._token = current()
        self._source = source
        self._wait = trio.lowlevel.wait_writable if writes else trio.lowlevel.wait_readable
        self._pid = os.getpid()

    def check_loop(self) -> None:
        if current() is not self._token:
            raise RuntimeError("used in an event loop other than the one in which it was made")

    def is_free(self) -> bool:
        if current() is not self._token:
            self.check_loop()
        return self.holder is None and next(self._calls) % CALLS != 0

    async def uncancelled(self) -> bool:
        # This takes a third of the time of trio.current_effective_deadline.
        try:
            await _checkpoint()
        except trio.Cancelled:
            return False
        return True

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait(self) -> None:
        if (fd := self._source.fileno()) < 0:
            return
        try:
            await self._wait(fd)
        except trio.ClosedResourceError:
            return  # stop() was called.

    def _is_here(self) -> bool:
        try:
            return current() is self._token
        except RuntimeError:
            return False

    def stop(self) -> None:
        if self._pid != os.getpid():
            return
        if self._is_here():
            trio.lowlevel.notify_closing(self._source.fileno())
            return
        try:
            self._token.run_sync_soon(_do_nothing)
        except trio.RunFinishedError:
            return  # The run is over, so no task waits.
        raise RuntimeError("used in another thread: call it in the thread of its event loop")

    def drop(self) -> None:
        """Does nothing: trio forgets a descriptor as soon as no task waits for it."""
