"""fdpass_c.aio with the manners of fdpass_c: a call runs asyncio's loop until it is over.

What is written for one, with its names, can so be done with the other.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Any

import fdpass_c
from fdpass_c import aio
from support.messages import Message, take

# How long a call may wait where a blocking one would not.
_A_MOMENT = 0.002

logged: list[str] = []
"""What the loop was told of: callbacks of its own that raised something."""


def _log(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logged.append(repr(context.get("exception", context["message"])))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_log)
    return loop


def start() -> None:
    """Before the first call: what is only made once, and imported, is there."""
    # What handlers of serve raise is not for the screen.
    logging.getLogger("fdpass_c.aio").addHandler(logging.NullHandler())
    for channel in Channel.pair():
        channel.close()


def stop() -> None:
    """After the last call."""
    _loop().close()
    _loop.cache_clear()


async def _within(limit: float | None, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    task = asyncio.current_task()
    assert task is not None
    timer = _loop().call_later(limit, task.cancel) if limit is not None else None
    try:
        return await function(*args)
    except asyncio.CancelledError as error:
        late = BlockingIOError("cancelled")
        late.progress = getattr(error, "progress", None)  # type: ignore[attr-defined]
        raise late from None
    finally:
        if timer is not None:
            timer.cancel()


def _run(function: Callable[..., Awaitable[Any]], *args: Any, limit: float | None = None) -> Any:
    """What the call returns. After limit seconds it is cancelled: BlockingIOError."""
    task = _loop().create_task(_within(limit, function, *args))
    try:
        return _loop().run_until_complete(task)
    except BaseException:
        if not task.done():  # It came out of the loop itself; asyncio.run does the same.
            task.cancel()
            with contextlib.suppress(BaseException):
                _loop().run_until_complete(task)
        raise


def _plain(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Of a socket in non-blocking mode; waits a moment at most."""

    def call(*args: Any, **options: Any) -> Any:
        return _run(partial(function, **options), *args, limit=25 * _A_MOMENT)

    return call


send_fds = _plain(aio.send_fds)
recv_fds = _plain(aio.recv_fds)
send_fd = _plain(aio.send_fd)
recv_fd = _plain(aio.recv_fd)
send_many = _plain(aio.send_many)
recv_many = _plain(aio.recv_many)


async def _make(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return function(*args, **options)


class _Limited:
    """What has a timeout, or waits only a moment."""

    _limit: float | None = None

    def settimeout(self, timeout: float | None) -> None:
        self._limit = None if timeout is None or timeout > 1 else _A_MOMENT

    def setblocking(self, blocking: bool) -> None:
        self.settimeout(None if blocking else 0)

    def _run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return _run(function, *args, limit=self._limit)


class Channel(_Limited):
    def __init__(self, sock: socket.socket | aio.Channel) -> None:
        self._channel: aio.Channel = (
            sock if isinstance(sock, aio.Channel) else _run(_make, aio.Channel, sock)
        )
        self.close = self._channel.close
        self.detach = self._channel.detach
        self.fileno = self._channel.fileno

    @classmethod
    def pair(cls) -> tuple["Channel", "Channel"]:
        here, there = _run(_make, aio.Channel.pair)
        return cls(here), cls(there)

    @classmethod
    def connect(cls, path: Any, *, timeout: float | None = None) -> "Channel":
        return cls(_run(aio.Channel.connect, path, limit=timeout))

    def send(self, *args: Any) -> None:
        self._run(self._channel.send, *args)

    def send_many(self, *args: Any) -> Any:
        return self._run(self._channel.send_many, *args)

    def recv(self) -> tuple[bytes, fdpass_c.Descriptors]:
        message: tuple[bytes, fdpass_c.Descriptors] = self._run(self._channel.recv)
        return message

    def recv_many(self) -> Any:
        return self._run(self._channel.recv_many)

    def flush(self) -> None:
        self._run(self._channel.flush)

    @property
    def pending(self) -> int:
        return self._channel.pending

    @property
    def unsent(self) -> int:
        return self._channel.unsent

    @property
    def closed(self) -> bool:
        return self._channel.closed

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Listener(_Limited):
    def __init__(self, path: Any, **options: Any) -> None:
        self._listener: aio.Listener = _run(partial(_make, aio.Listener, path, **options))
        self.close = self._listener.close
        self.detach = self._listener.detach
        self.fileno = self._listener.fileno

    def accept(self) -> Channel:
        return Channel(self._run(self._listener.accept))

    def serve_one(self) -> list[Message]:
        """Serves until the handler of one connection has ended, which a signal can prevent, or for
        a while that is longer than the pause after a failed accept. Returns what it has received.
        """
        received: list[Message] = []

        async def handle(channel: aio.Channel) -> None:
            try:
                received.append(take(await channel.recv()))
            finally:
                self.close()

        _run(self._listener.serve, handle, limit=0.3)
        return received

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
