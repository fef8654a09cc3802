"""Runs a handler, in a task of its own, for each accepted channel, under trio."""

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from fdpass_c.aio.channel import Channel
from fdpass_c.aio.serving import Accept, Handler, handle

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # trio requires it there.


async def serve_in_trio(accept: Accept, handler: Handler) -> None:
    """See Listener.serve. accept: called for each channel."""
    # An exception that is raised in the nursery would come out of it in an ExceptionGroup.
    failures: list[BaseException] = []
    try:
        async with trio.open_nursery() as nursery:
            keep = partial(_keep_failure, failures, nursery.cancel_scope)
            await keep(_start_handlers, nursery, keep, accept, handler)
    finally:
        if failures:
            # If it stayed there, it would form a cycle with this frame.
            raise failures.pop(0) from None


async def _start_handlers(
    nursery: trio.Nursery, keep: Callable[..., Any], accept: Accept, handler: Handler
) -> None:
    handler = partial(_without_cancellation, handler)
    while (channel := await accept()) is not None:
        nursery.start_soon(keep, handle, handler, channel)


async def _keep_failure(
    failures: list[BaseException],
    scope: trio.CancelScope,
    call: Callable[..., Awaitable[None]],
    *arguments: Any,
) -> None:
    """Calls and awaits. What it raises is put into failures, and scope is cancelled."""
    try:
        await call(*arguments)
    except trio.Cancelled:
        raise
    except BaseException as error:
        failures.append(error)
        scope.cancel()


async def _without_cancellation(handler: Handler, channel: Channel) -> None:
    """Calls a handler. If a nursery of it was cancelled, only the other exceptions are raised: the
    task of serve_in_trio itself raises the cancellation too."""
    try:
        await handler(channel)
    except BaseExceptionGroup as error:
        others = error.split(trio.Cancelled)[1]
        if others is not None:
            raise others from None
