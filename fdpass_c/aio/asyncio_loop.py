"""Waits in the loops of asyncio, which include uvloop's."""

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

# Stands for this process. A child of a fork gets a new object.
_process = object()


def _after_fork() -> None:
    global _process
    _process = object()


os.register_at_fork(after_in_child=_after_fork)


def watch(source: HasFileno, writes: bool) -> "AsyncioDirection":
    """See Loop.watch."""
    return AsyncioDirection(source, writes)


class _Waiting:
    """An event that one task awaits once. To the task it looks like a future.

    It resumes the task inside of the loop's callback. A Future would resume it in the loop's next
    turn, and before that asyncio's own loops poll all descriptors once more. That would take a
    quarter of the time that a message takes there and back.
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
        self._asyncio_future_blocking = True  # asyncio requires it of an awaited future.
        self._loop = loop  # asyncio checks that this is the loop of the task.
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
            return False  # A signal handler cancels during result(). Then the task handles it.
        self._cancelled = asyncio.CancelledError(*() if msg is None else (msg,))
        self.set()
        return True

    def result(self) -> None:
        self._resume = None  # The task has been resumed.
        if self._cancelled is not None:
            try:
                raise self._cancelled
            finally:
                # Otherwise the exception and this object would form a reference cycle.
                self._cancelled = None

    def done(self) -> bool:
        """Whether the task will be resumed. anyio.wait_all_tasks_blocked asks for it."""
        return self._is_set

    def end(self) -> None:
        """Resumes the task at once. Only a callback of the loop may call this, because no other
        task may be running."""
        if self._resume is not None:
            self._context.run(self._resume, self)

    def set(self) -> None:
        """Resumes the task in the next turn of the loop. May be called anywhere in the loop's
        thread. Does nothing if the loop is closed."""
        self._is_set = True
        if not self._loop.is_closed():
            self._loop.call_soon(self.end)


class AsyncioDirection(Direction):
    """One direction of a descriptor in the running loop.

    The loop refers to this object while it watches the descriptor. This object does not refer to
    the Channel or Listener of fdpass_c.aio that uses it, so that these are collected when the
    program drops them.
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
        # A signal handler may end the call that adds or removes the descriptor. So _is_watched is
        # true only if the loop surely watches it, and _watched is -1 only if it surely does not.
        self._watched = -1
        self._is_watched = False
        self._waiting: _Waiting | None = None

    def is_free(self) -> bool:
        # Every call begins here, so it must be fast. Before Python 3.12, get_running_loop makes a
        # system call; therefore check_loop is called only if something has changed.
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
        if not self._is_watched:
            if (fd := self._source.fileno()) < 0:
                return
            self._watched = fd
            # A new context, because the loop would keep the context of this task alive.
            contextvars.Context().run(self._add, fd, self._wake)
            self._is_watched = True
        self._waiting = waiting = _Waiting(self._loop)
        try:
            yield waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        """The loop's callback when the descriptor is ready. It is removed only when no task waits,
        because adding and removing it takes one system call each."""
        if self._waiting is None:
            self._forget()
        else:
            self._waiting.end()

    def _forget(self) -> None:
        self._is_watched = False
        # A forked child shares the parent's epoll: removing the descriptor would disturb the
        # parent.
        if self._watched >= 0 and self._process is _process and not self._loop.is_closed():
            self._remove(self._watched)
        self._watched = -1

    def _is_elsewhere(self) -> bool:
        # Comparing threads is not enough: a loop may run in a thread other than the one that made
        # this object.
        if self._process is not _process or not self._is_running():
            return False
        try:
            return asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            return True

    def stop(self) -> None:
        if self._is_elsewhere():
            raise RuntimeError("used in another thread: call it in the thread of its event loop")
        self._forget()
        if self._waiting is not None and self._process is _process:
            self._waiting.set()

    def drop(self) -> None:
        if self._watched >= 0 and self._is_elsewhere():
            # The callback keeps this object alive, and so the descriptor stays open until then.
            self._loop.call_soon_threadsafe(self._forget)
        else:
            self._forget()
