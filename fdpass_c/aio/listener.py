"""Listener: accepts channels at a named Unix socket, under an event loop."""

import errno
import socket
from collections.abc import AsyncIterator, Collection

import fdpass_c
from fdpass_c.aio.channel import Channel
from fdpass_c.aio.directions import Direction, take
from fdpass_c.aio.loops import in_trio, running
from fdpass_c.aio.serving import Handler, logger, serve_in_asyncio
from fdpass_c.options import DEFAULT_MAX_FDS, DEFAULT_MAX_PAYLOAD
from fdpass_c.owning import NotCopied
from fdpass_c.unix import Path

# After these errors, accept() may work again: the first four last until something is closed, the
# others usually concern one connection (man 2 accept). EPERM can also come from a filter and last.
_MAY_PASS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
}

# Seconds until the next attempt after such an error.
_RETRY_DELAY = 0.1


class Listener(NotCopied):
    """Listens at a path, or takes a socket that listens, and accepts channels of the running loop.

    It is an async context manager, whose exit calls close(), and an async iterator, which accepts
    for ever. What Channel says about loops, tasks, fairness and cancellation holds here too.
    """

    def __init__(
        self,
        address: Path | socket.socket,
        *,
        backlog: int = 128,
        mode: int = 0o600,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> None:
        """Binds a new socket and listens, or takes ownership of one that listens.

        Args:
            address: As for fdpass_c.Listener.
            backlog: As for fdpass_c.Listener.
            mode: As for fdpass_c.Listener.
            max_payload: As for Channel, for each accepted channel.
            max_fds: As for Channel, for each accepted channel.
            allow_uids: As for Channel, for each accepted channel.
            receive_fds: As for Channel, for each accepted channel.

        Raises:
            RuntimeError: No event loop is running.
            OSError: As for fdpass_c.Listener, and so are all other errors.
        """
        _, loop = running()
        self._listener = fdpass_c.Listener(
            address,
            backlog=backlog,
            mode=mode,
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        self._listener.settimeout(0)
        self._accepting: Direction = loop.watch(self._listener, False)
        self._sleep = loop.sleep

    async def accept(self) -> Channel:
        """Waits for the next connection and returns its Channel, which the caller owns and closes.

        A peer whose user is not in allow_uids is disconnected, and accept waits for the next one.

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
        """Calls handler(channel) for every connection, in a new task each, until close().

        The channel is closed when the handler returns. If the handler raises an exception, the
        logger fdpass_c.aio logs it. serve returns when the listener is closed and all handlers have
        returned. If serve is cancelled, it cancels the handlers, and waits until they have
        returned. It does so too if a handler raises what is no Exception, such as SystemExit, and
        then raises that. If accepting fails for lack of descriptors or memory (EMFILE, ENFILE,
        ENOBUFS, ENOMEM), or for another reason that may pass, it tries again after 0.1 s.

        Args:
            handler: A coroutine function.

        Raises:
            OSError: Accepting failed for another reason, for instance EINVAL: another process has
                shut the socket down. The handlers were cancelled.
        """
        if in_trio():
            from fdpass_c.aio.trio_serving import serve_in_trio

            await serve_in_trio(self._accept_next, handler)
        else:
            await serve_in_asyncio(self._accept_next, handler)

    async def _accept_next(self) -> Channel | None:
        """Accepts a channel, also after errors that pass. None if the listener is closed."""
        failing = False
        while True:
            try:
                return await self.accept()
            except OSError as error:
                if self.closed:
                    return None
                if error.errno not in _MAY_PASS:
                    raise
                if not failing:  # The error is logged once, however long it lasts.
                    text = "cannot accept: %s; trying again every %s s"
                    logger.warning(text, error, _RETRY_DELAY)
                failing = True
            await self._sleep(_RETRY_DELAY)

    def fileno(self) -> int:
        """Returns the descriptor, which the listener still owns, or -1 after close()."""
        return self._listener.fileno()

    @property
    def closed(self) -> bool:
        """Whether close() or detach() was called."""
        return self._listener.closed

    def detach(self) -> socket.socket:
        """Hands over the socket, which stays non-blocking: see fdpass_c.Listener.detach.

        Tasks that wait in accept get an OSError (EBADF). serve ends as after close().

        Raises:
            RuntimeError: It is called in a thread other than the loop's.
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
            RuntimeError: It is called in a thread other than the loop's.
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
        """Makes the loop forget the descriptor, unless the listener was closed. Then the socket
        closes it with a ResourceWarning."""
        if hasattr(self, "_accepting") and not self.closed:
            self._accepting.drop()

    def __repr__(self) -> str:
        return f"<fdpass_c.aio.Listener over {self._listener!r}>"
