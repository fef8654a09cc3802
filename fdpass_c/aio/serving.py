"""Runs a handler, in a task of its own, for each accepted channel."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from fdpass_c.aio.channel import Channel

logger: logging.Logger = logging.getLogger("fdpass_c.aio")

Accept = Callable[[], Awaitable[Channel | None]]
"""Returns the next channel, or None if there will be no more."""

Handler = Callable[[Channel], Awaitable[object]]


async def handle(handler: Handler, channel: Channel) -> None:
    """Calls a handler, and closes its channel. Exceptions are logged."""
    try:
        async with channel:
            await handler(channel)
    except Exception:
        logger.exception("the handler failed on the connection of %r", channel.peer)


def _cancel(tasks: "Iterable[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()


async def serve_in_asyncio(accept: Accept, handler: Handler) -> None:
    """See Listener.serve. accept: called for each channel."""
    serving: Any = asyncio.current_task()
    # No variable of this frame may refer to a task that has failed: its error, which is raised
    # below, would be in a reference cycle.
    tasks: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    def start(channel: Channel) -> None:
        task = asyncio.create_task(handle(handler, channel))
        tasks.add(task)
        task.add_done_callback(partial(end, channel))

    def end(channel: Channel, task: asyncio.Task[None]) -> None:
        channel.close()  # A task that is cancelled before it starts does not close it.
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not failures:
                serving.cancel()
            failures.append(error)

    try:
        while (channel := await accept()) is not None:
            start(channel)
        if tasks:
            await asyncio.wait(tasks)
    except GeneratorExit:
        raise  # This coroutine was dropped because its loop has ended, and so are the tasks.
    except BaseException:
        _cancel(tasks)
        # Not all that is in tasks: a signal handler may have raised in end.
        while unfinished := [task for task in tasks if not task.done()]:
            # anyio cancels this task again in each turn of the loop, until it has ended.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(unfinished)
        if failures:
            if sys.version_info >= (3, 11):
                serving.uncancel()
            raise failures.pop(0) from None
        raise
