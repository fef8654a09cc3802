"""Waiting in trio."""

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
    """For a run that is asked whether it is over."""


def watch(source: HasFileno, writes: bool) -> "TrioDirection":
    """As Loop.watch."""
    return TrioDirection(source, writes)


class TrioDirection(Direction):
    """One direction of a descriptor in the run that is under way.

    Trio knows of it only while somebody waits.
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

    async def look(self) -> bool:
        # Takes a third of the time of asking for the deadline, however deep the scopes are.
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
            return  # After stop().

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
            return  # Nobody waits.
        raise RuntimeError("used in another thread than that of its event loop")

    def drop(self) -> None:
        """Trio has forgotten it already."""
