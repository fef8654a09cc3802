"""Waiting in asyncio's loops, uvloop's among them."""

import asyncio
import os
import threading
import types
from collections.abc import Generator

from fdpass_c.aio.loops import Direction
from fdpass_c.waiting import HasFileno

sleep = asyncio.sleep
_get_running_loop = asyncio.get_running_loop


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield


def watch(source: HasFileno, writes: bool) -> "AsyncioDirection":
    """As Loop.watch."""
    return AsyncioDirection(source, writes)


class AsyncioDirection(Direction["asyncio.Future[None]"]):
    """One direction of a descriptor in the loop that runs.

    The loop refers to this object only, and this one to nobody who uses it.
    """

    def __init__(self, source: HasFileno, writes: bool) -> None:
        super().__init__()
        self._loop = loop = _get_running_loop()
        self._source = source
        self._add, self._remove = (
            (loop.add_writer, loop.remove_writer)
            if writes
            else (loop.add_reader, loop.remove_reader)
        )
        self._watched = -1
        self._waiting: asyncio.Future[None] | None = None
        # Asyncio's own looks at all descriptors once more before it runs the task that has just
        # been woken, and so calls back for what that task is about to take.
        self._repeats = isinstance(loop, asyncio.BaseEventLoop)
        self._is_repeat = False
        self._pid = os.getpid()
        self._thread = threading.get_ident()

    def check_loop(self) -> None:
        if _get_running_loop() is not self._loop:
            raise RuntimeError("used in another event loop than the one in which it was made")

    async def pause(self) -> None:
        await _pause()

    async def wait(self) -> None:
        if self._watched < 0:
            self._watched = self._source.fileno()
            self._add(self._watched, self._wake)
        self._waiting = waiting = self._loop.create_future()
        try:
            await waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        """The loop's callback. It stays while messages come: to add and remove it costs a system
        call each."""
        if self._is_repeat:
            self._is_repeat = False
        elif self._waiting is None:
            self._forget()
        elif not self._waiting.done():
            self._waiting.set_result(None)
            self._is_repeat = self._repeats

    def _forget(self) -> None:
        watched, self._watched = self._watched, -1
        # A child of a fork shares the parent's epoll, where the descriptor is the parent's.
        if watched >= 0 and self._pid == os.getpid() and not self._loop.is_closed():
            self._remove(watched)

    def _is_elsewhere(self) -> bool:
        return self._thread != threading.get_ident() and self._loop.is_running()

    def stop(self) -> None:
        if self._is_elsewhere():
            raise RuntimeError("closed in another thread than that of its event loop")
        self._forget()
        if self._waiting is not None and not self._waiting.done() and not self._loop.is_closed():
            self._waiting.set_result(None)

    def drop(self) -> None:
        if self._watched >= 0 and self._is_elsewhere():
            # This object, and so the descriptor, live until then.
            self._loop.call_soon_threadsafe(self._forget)
        else:
            self._forget()

    def make_place(self) -> "asyncio.Future[None]":
        return self._loop.create_future()

    async def stay(self, place: "asyncio.Future[None]") -> None:
        await place

    def call(self, place: "asyncio.Future[None]") -> bool:
        if place.done():
            return False
        place.set_result(None)
        return True

    def was_called(self, place: "asyncio.Future[None]") -> bool:
        return place.done() and not place.cancelled()
