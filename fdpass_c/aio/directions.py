"""Lets tasks take turns at a descriptor, and lets other tasks run now and then, in every loop."""

import itertools
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

CALLS = 32
"""At least one of so many calls lets the loop run other tasks, even if none of them has to wait."""

# Seconds between two tries, if the loop cannot report when the next one could succeed.
_FIRST_DELAY = 0.001
_LONGEST_DELAY = 0.1

Result = TypeVar("Result")


class _Counter(threading.local):
    """Counts the calls of one thread, which runs one loop at a time."""

    def __init__(self) -> None:
        self.calls: Iterator[int] = itertools.count(1)


_counter = _Counter()


class Direction(ABC):
    """One direction of a descriptor: tasks that receive, or tasks that send, take turns in the
    order of their calls.

    If is_free() is true, a call tries at once, and is usually done then, without a turn. Otherwise
    it takes a turn. It makes itself the holder if the direction is free, or awaits enter(). Then it
    tries, and waits, until it succeeds. Whatever happens, it ends the turn in this way:

        if direction.holder is me:
            direction.holder = None
            if direction.queue:
                direction.pass_on()

    These lines are repeated where they are needed. If they were a function, a signal handler could
    raise an exception at its call, and the turn would never end.

    holder: the object that stands for the call whose turn it is, or None. queue: the calls that
    wait for their turn, each with its event.
    """

    uncancelled: Callable[[], Awaitable[bool]] | None = None
    """In a loop that delivers a cancellation at every call: returns False if the caller is
    cancelled, without waiting, and the next pause() raises the cancellation. None in other
    loops."""

    def __init__(self, make_event: Callable[[], Any]) -> None:
        """make_event: makes an event, with set() and wait(), for one task."""
        self.holder: object = None
        self.queue: OrderedDict[object, Any] = OrderedDict()
        self._make_event = make_event
        self._calls = _counter.calls

    async def enter(self, me: object) -> None:
        """Returns when me is the holder. Before, other tasks run, or a cancellation is raised."""
        if self.holder is None:
            self.holder = me
            await self.pause()
            return
        event = self.queue[me] = self._make_event()
        try:
            await event.wait()
        finally:
            self.queue.pop(me, None)

    def pass_on(self) -> None:
        """Makes the first call in the queue the holder. If that call is cancelled meanwhile, it
        passes the turn on itself."""
        self.holder, event = self.queue.popitem(last=False)
        event.set()

    @abstractmethod
    def is_free(self) -> bool:
        """Whether the caller may try at once: no call has the turn, and it is not time to let other
        tasks run (CALLS). Every call begins with it.

        RuntimeError: it is called in a loop other than the one in which this object was made.
        """

    @abstractmethod
    def check_loop(self) -> None:
        """RuntimeError: it is called in a loop other than the one in which this object was made."""

    @abstractmethod
    def pause(self) -> Awaitable[None]:
        """Lets the loop run other tasks."""

    @abstractmethod
    def wait(self) -> Awaitable[None]:
        """Returns when the descriptor may be ready, when it is closed, or after stop()."""

    @abstractmethod
    def stop(self) -> None:
        """Makes the loop forget the descriptor, and wakes the tasks that wait.

        It must be called before the descriptor is closed. Otherwise asyncio's loops use the CPU
        all the time, and uvloop aborts the process.
        """

    @abstractmethod
    def drop(self) -> None:
        """Makes the loop forget the descriptor when no task waits. Any thread may call it, because
        the garbage collector does."""


def growing_pauses(sleep: Callable[[float], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Returns a function that waits longer at each call, up to 0.1 s. It is for tries that may
    succeed at any time, which no loop can report."""
    delay = _FIRST_DELAY

    async def wait() -> None:
        nonlocal delay
        await sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)

    return wait


async def take(
    direction: Direction,
    attempt: Callable[[], Result],
    wait: Callable[[], Awaitable[None]] | None = None,
) -> Result:
    """Calls attempt until it does not raise BlockingIOError, and returns its result. The caller
    has the turn meanwhile.

    wait: how to wait before the next try, instead of waiting for the descriptor.

    Nothing is awaited between the last try and the return. So no cancellation can come after a try
    that has received something.
    """
    me = object()
    wait = wait or direction.wait
    try:
        if direction.is_free() and (direction.uncancelled is None or await direction.uncancelled()):
            direction.holder = me
        else:
            await direction.enter(me)
        while True:
            try:
                return attempt()
            except BlockingIOError:
                await wait()
    finally:
        if direction.holder is me:
            direction.holder = None
            if direction.queue:
                direction.pass_on()
