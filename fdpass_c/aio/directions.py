"""Whose turn it is to use a descriptor, and how long a call goes on: the same in every loop."""

import itertools
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

CALLS = 32
"""A loop turns at least once in so many calls, whether or not any of them had to wait."""

# Seconds between two tries, where no loop tells when one is worthwhile.
_FIRST_DELAY = 0.001
_LONGEST_DELAY = 0.1

Result = TypeVar("Result")


class _Counter(threading.local):
    """The calls of this thread, which runs one loop at a time."""

    def __init__(self) -> None:
        self.calls: Iterator[int] = itertools.count(1)


_counter = _Counter()


class Direction(ABC):
    """Tasks that receive from one descriptor, or send: they take turns, first come first served.

    A call tries at once where is_free() says so, and is done if that works: the usual case, without
    a lock. Else it takes a turn: it makes itself the holder, or awaits enter() where it was not
    free; tries and waits; and ends the turn, whatever happens, by

        if direction.holder is me:
            direction.holder = None
            if direction.places:
                direction.pass_on()

    which is written out where it is needed: a signal handler that raises an exception in a function
    would never end the turn.
    """

    look: Callable[[], Awaitable[bool]] | None = None
    """For a loop whose users expect to be cancelled at every call: returns False if the caller is
    cancelled, which the next pause() raises. It does not wait otherwise. None for other loops."""

    def __init__(self, make_event: Callable[[], Any]) -> None:
        """make_event: makes what has set() and wait(), for one task that waits for its turn."""
        self.holder: object = None
        self.places: OrderedDict[object, Any] = OrderedDict()
        self._make_event = make_event
        self._calls = _counter.calls

    async def enter(self, me: object) -> None:
        """Returns when me is the holder. The loop turns before, and a cancellation shows."""
        if self.holder is None:
            self.holder = me
            await self.pause()
            return
        called = self.places[me] = self._make_event()
        try:
            await called.wait()
        finally:
            self.places.pop(me, None)

    def pass_on(self) -> None:
        """Makes the one who came next the holder, who passes it on if it is cancelled meanwhile."""
        self.holder, called = self.places.popitem(last=False)
        called.set()

    @abstractmethod
    def is_free(self) -> bool:
        """Whether the caller may try at once: no task has the turn, and the loop ran lately.

        It is what every call does first. RuntimeError in another loop than the one in which this
        was made.
        """

    @abstractmethod
    def check_loop(self) -> None:
        """RuntimeError in another loop than the one in which this was made."""

    @abstractmethod
    def pause(self) -> Awaitable[None]:
        """Lets the loop turn."""

    @abstractmethod
    def wait(self) -> Awaitable[None]:
        """Returns when the descriptor may be ready, or is closed, or after stop()."""

    @abstractmethod
    def stop(self) -> None:
        """Makes the loop forget the descriptor, and wakes the tasks that wait.

        To be called before closing it: otherwise a loop burns the CPU or, uvloop, aborts.
        """

    @abstractmethod
    def drop(self) -> None:
        """As stop, where no task waits. Any thread may call it: the garbage collector does."""


def growing_pauses(sleep: Callable[[float], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Where no loop tells when another try is worthwhile: waits longer each time, up to 0.1 s."""
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
    """What attempt returns, once it no longer raises BlockingIOError, in a turn of its own.

    wait: How to wait until then, if not for the descriptor.

    Nothing is awaited between the last try and the return, so that nothing it took is lost.
    """
    me = object()
    wait = wait or direction.wait
    try:
        if direction.is_free() and (direction.look is None or await direction.look()):
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
            if direction.places:
                direction.pass_on()
