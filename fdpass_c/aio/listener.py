"""Listener: accepts channels at a named Unix socket, under an event loop."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import fdpass_c
from fdpass_c.aio.channel import Channel
from fdpass_c.aio.directions import Direction, take
from fdpass_c.aio.loops import in_trio, running
from fdpass_c.owning import NotCopied
from fdpass_c.unix import Path

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fdpass_c.options import ChannelOptions

logger: logging.Logger = logging.getLogger("fdpass_c.aio")

Handler = Callable[[Channel], Awaitable[object]]

# What accept() is refused for lack of, until something is closed; and what may be the fault of one
# connection (man 2 accept), or of a filter, and last.
_MAY_PASS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
}

# Seconds until the next attempt then.
_REST = 0.1


class Listener(NotCopied):
    """Listens at a path, or takes a socket that listens, and accepts channels of the running loop.

    An async context manager: its exit calls close(). An async iterator: it accepts for ever. What
    Channel says about loops, tasks, fairness and cancellation holds here too.
    """

    def __init__(
        self,
        address: Path | socket.socket,
        *,
        backlog: int = 128,
        mode: int = 0o600,
        **options: "Unpack[ChannelOptions]",
    ) -> None:
        """Binds a new socket and listens, or takes ownership of one that listens.

        Args:
            address: As for fdpass_c.Listener.
            backlog: As for fdpass_c.Listener.
            mode: As for fdpass_c.Listener.
            **options: As for Channel, for each accepted one.

        Raises:
            RuntimeError: No event loop is running.
            OSError: As for fdpass_c.Listener, and so are all other errors.
        """
        _, loop = running()
        self._listener = fdpass_c.Listener(address, backlog=backlog, mode=mode, **options)
        self._listener.settimeout(0)
        self._accepting: Direction = loop.watch(self._listener, False)
        self._sleep = loop.sleep

    async def accept(self) -> Channel:
        """Waits for the next connection and returns its Channel, which the caller owns and closes.

        A peer whose user is not in allow_uids is disconnected, and the next one is waited for.

        Raises:
            OSError: EMFILE: the descriptor table is full. EBADF: the listener is closed. Others as
                for socket.accept.
        """
        return Channel.adopt(await take(self._accepting, self._listener.accept))

    def __aiter__(self) -> AsyncIterator[Channel]:
        """Accepts for ever."""
        return self

    async def __anext__(self) -> Channel:
        """Accepts one channel."""
        return await self.accept()

    async def serve(self, handler: Handler) -> None:
        """Calls handler(channel) for every connection, in a task of its own, until close().

        The channel is closed when the handler returns. If the handler raises an exception, the
        logger fdpass_c.aio logs it. serve returns when the listener is closed and all handlers have
        returned. If serve is cancelled, it cancels them, and waits until they have returned. If
        accepting fails for lack of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM), or for
        another passing reason, it tries again after 0.1 s.

        Args:
            handler: A coroutine function.

        Raises:
            OSError: Accepting failed for another reason, for instance EINVAL: another process has
                shut the socket down. The handlers were cancelled.
        """
        if in_trio():
            await self._serve_in_trio(handler)
        else:
            await self._serve_in_asyncio(handler)

    async def _serve_in_trio(self, handler: Handler) -> None:
        import trio

        failure: OSError | None = None
        async with trio.open_nursery() as nursery:
            try:
                async for channel in self._accept_until_closed():
                    nursery.start_soon(_handle, handler, channel)
            except OSError as error:
                failure = error  # The nursery would put it into an ExceptionGroup.
                nursery.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # Else the error and this frame would refer to each other.

    async def _serve_in_asyncio(self, handler: Handler) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def end(channel: Channel, task: asyncio.Task[None]) -> None:
            channel.close()  # A task that is cancelled before it starts never comes to that.
            tasks.discard(task)

        try:
            async for channel in self._accept_until_closed():
                task = asyncio.create_task(_handle(handler, channel))
                tasks.add(task)
                task.add_done_callback(partial(end, channel))
            if tasks:
                await asyncio.wait(tasks)
        except GeneratorExit:
            raise  # It is dropped with its loop, and so are they.
        except BaseException:
            for task in tasks:
                task.cancel()
            while tasks:
                with contextlib.suppress(asyncio.CancelledError):  # anyio cancels in each turn.
                    await asyncio.wait(tasks)
            raise

    async def _accept_until_closed(self) -> AsyncIterator[Channel]:
        failing = False
        while True:
            try:
                channel = await self.accept()
            except OSError as error:
                if self.closed:
                    return
                if error.errno not in _MAY_PASS:
                    raise
                if not failing:  # Once, however long it lasts.
                    logger.warning("cannot accept: %s; trying again every %s s", error, _REST)
                failing = True
                await self._sleep(_REST)
            else:
                failing = False
                yield channel

    def fileno(self) -> int:
        """Returns the listening socket's descriptor, borrowed; -1 after close()."""
        return self._listener.fileno()

    @property
    def closed(self) -> bool:
        """Whether close() or detach() was called."""
        return self._listener.closed

    def detach(self) -> socket.socket:
        """Hands over the socket, which stays non-blocking: see fdpass_c.Listener.detach.

        Tasks that wait in accept get an OSError (EBADF). serve ends as after close().

        Raises:
            RuntimeError: Called in another thread than the loop's.
            OSError: As for fdpass_c.Listener.detach.
        """
        if not self.closed:
            self._accepting.stop()
        return self._listener.detach()

    def close(self) -> None:
        """Stops listening, and removes the socket file that it made unless another has replaced it.

        Calling it again does nothing. Tasks that wait in accept get an OSError (EBADF). In a forked
        child it only closes the child's copy: the parent still listens.

        Raises:
            RuntimeError: Called in another thread than the loop's.
        """
        if not self.closed:
            self._accepting.stop()
        self._listener.close()

    async def __aenter__(self) -> "Listener":
        """Returns the object itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Calls close()."""
        self.close()

    def __del__(self) -> None:
        """The socket below closes with a ResourceWarning, unless it was closed."""
        if hasattr(self, "_accepting") and not self.closed:
            self._accepting.drop()


async def _handle(handler: Handler, channel: Channel) -> None:
    try:
        async with channel:
            await handler(channel)
    except Exception:
        logger.exception("the handler failed on the connection of %r", channel.peer)
