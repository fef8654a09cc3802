"""Waiting in asyncio's loops, uvloop's among them."""

import asyncio
import contextvars
import os
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from threading import get_ident
from typing import Any

from fdpass_c.aio.directions import CALLS, Direction
from fdpass_c.waiting import HasFileno

sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep

# This process, and no child of a fork.
_process = object()


def _after_fork() -> None:
    global _process
    _process = object()


os.register_at_fork(after_in_child=_after_fork)


def watch(source: HasFileno, writes: bool) -> "AsyncioDirection":
    """As Loop.watch."""
    return AsyncioDirection(source, writes)


class _Waiting:
    """An event that one task waits for, once: a future, as far as the task can tell.

    It resumes the task inside of the loop's callback. A Future has that wait for the loop's next
    turn, before which asyncio's own looks at all descriptors once more: a quarter of the time that
    a message takes there and back.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_cancelled",
        "_context",
        "_is_set",
        "_loop",
        "_resume",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = True  # For asyncio: it was made to be awaited.
        self._loop = loop  # asyncio compares it with its own.
        self._resume: Callable[[Any], object] | None = None
        self._cancelled: asyncio.CancelledError | None = None
        self._is_set = False

    @types.coroutine
    def wait(self) -> Generator[Any, None, None]:
        yield self

    def add_done_callback(
        self, resume: Callable[[Any], object], *, context: contextvars.Context
    ) -> None:
        self._resume = resume
        self._context = context

    def cancel(self, msg: object = None) -> bool:
        if self._resume is None:
            return False  # A signal handler has interrupted result(): the task sees to it.
        self._cancelled = asyncio.CancelledError(*() if msg is None else (msg,))
        self.set()
        return True

    def result(self) -> None:
        self._resume = None  # The task runs.
        if self._cancelled is not None:
            try:
                raise self._cancelled
            finally:
                self._cancelled = None  # Else the two would refer to each other.

    def done(self) -> bool:
        """For anyio.wait_all_tasks_blocked: whether the task goes on by itself."""
        return self._is_set

    def end(self) -> None:
        """Resumes the task. For callbacks of the loop only, which no task has called."""
        if self._resume is not None:
            self._context.run(self._resume, self)

    def set(self) -> None:
        """The same from anywhere, and later; never where the loop was closed."""
        self._is_set = True
        if not self._loop.is_closed():
            self._loop.call_soon(self.end)


class AsyncioDirection(Direction):
    """One direction of a descriptor in the loop that runs.

    The loop refers to this object only, and this one to none of its users.
    """

    def __init__(self, source: HasFileno, writes: bool) -> None:
        self._loop = loop = asyncio.get_running_loop()
        super().__init__(partial(_Waiting, loop))
        self._is_running = loop.is_running
        self._thread = get_ident()
        self._process = _process
        self._source = source
        self._add, self._remove = (
            (loop.add_writer, loop.remove_writer)
            if writes
            else (loop.add_reader, loop.remove_reader)
        )
        self._watched = -1
        self._waiting: _Waiting | None = None

    def is_free(self) -> bool:
        # What every call does first. To ask which loop runs is a system call before Python 3.12.
        if not self._is_running() or self._thread != get_ident() or self._process is not _process:
            self.check_loop()
        return self.holder is None and next(self._calls) % CALLS != 0

    def check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("used in an event loop other than the one in which it was made")
        self._thread = get_ident()

    @types.coroutine
    def pause(self) -> Generator[None, None, None]:
        yield

    @types.coroutine
    def wait(self) -> Generator[Any, None, None]:
        if self._watched < 0:
            if (fd := self._source.fileno()) < 0:
                return
            self._watched = fd  # First, for the case that a signal handler raises an exception.
            try:
                # The loop would keep the context of the task that happens to be the first.
                contextvars.Context().run(self._add, fd, self._wake)
            except BaseException:
                self._forget()
                raise
        self._waiting = waiting = _Waiting(self._loop)
        try:
            yield waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        """The loop's callback. It stays while messages come: to add and remove it costs a system
        call each."""
        if self._waiting is None:
            self._forget()
        else:
            self._waiting.end()

    def _forget(self) -> None:
        # A child of a fork shares the parent's epoll, where the descriptor is the parent's.
        if self._watched >= 0 and self._process is _process and not self._loop.is_closed():
            self._remove(self._watched)
        self._watched = -1  # Last: what a signal handler has interrupted is done again.

    def _is_elsewhere(self) -> bool:
        # Not by the thread: a loop may run in another one than that in which this was made.
        if self._process is not _process or not self._is_running():
            return False
        try:
            return asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            return True

    def stop(self) -> None:
        if self._is_elsewhere():
            raise RuntimeError("used in another thread than that of its event loop")
        self._forget()
        if self._waiting is not None and self._process is _process:
            self._waiting.set()

    def drop(self) -> None:
        if self._watched >= 0 and self._is_elsewhere():
            # This object, and so the descriptor, live until then.
            self._loop.call_soon_threadsafe(self._forget)
        else:
            self._forget()
